"""One row per request: our ingress beside the servers that users would pick instead, and where its time goes."""
