"""One search over several estimators, under one budget."""
