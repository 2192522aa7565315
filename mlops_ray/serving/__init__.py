"""Serving: protocol, routing, prediction, capture, and the applications on Ray Serve."""
