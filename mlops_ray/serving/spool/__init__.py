"""Between an answer and the log: records as bytes, the files of a node, whose a request id is."""
