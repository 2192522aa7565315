"""The prediction log: from segments to tables, kept tidy, read, and made to forget."""
