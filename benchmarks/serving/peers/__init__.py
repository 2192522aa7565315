"""What runs in the peers' environments, beside their servers."""
