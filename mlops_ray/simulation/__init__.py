"""Simulation: recorded history lived through the real policy, windows, gates and rollout, in virtual time."""
