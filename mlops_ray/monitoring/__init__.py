"""Monitoring: windows of live traffic, drift and quality judged under a false-alarm budget."""
