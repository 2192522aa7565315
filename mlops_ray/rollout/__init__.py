"""Progressive delivery: the state machine, the sequential analysis, and the controller."""
