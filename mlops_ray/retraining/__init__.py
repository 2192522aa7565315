"""Retraining: evidence to decision, and the job that a decision launches."""
