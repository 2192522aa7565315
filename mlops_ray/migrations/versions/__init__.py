"""One module per revision. A revision that was released never changes; a change of schema is a new one."""
