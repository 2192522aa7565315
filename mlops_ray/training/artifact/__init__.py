"""The trained artifact: what training writes, and serving, monitoring and audits read."""
