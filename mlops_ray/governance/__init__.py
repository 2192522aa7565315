"""Where a version comes from, who let it through, and what is to be said of it: read from records, deciding nothing."""
