"""From rows to the matrix that an estimator takes: merged statistics, derived columns, the fitted transformer."""
