"""How requests and answers are written: one module per protocol, and what they share."""
