"""The HTTP surface: routes, limits, what every answer carries."""
