"""The Ray cluster that a project lives on: joined, or started on this machine and ended without touching others."""
