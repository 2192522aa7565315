"""What a project's HTTP endpoint answers besides predictions, and the replica that answers all of it."""
