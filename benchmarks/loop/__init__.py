"""Benchmarks of the closed loop."""
