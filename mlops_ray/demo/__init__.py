"""The demonstrations: flights out of New York in 2013, and a quickstart in one minute."""
