"""Where rows come from: files, tables, queries and APIs, as shards that tasks read by themselves."""
