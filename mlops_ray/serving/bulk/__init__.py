"""Scoring in bulk: the same model and rules as a request, block by block."""
