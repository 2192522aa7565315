"""Alerts: what is observed, the rules, who is told what, and where all of it is kept."""
