"""How good a model is, with intervals that respect time."""
