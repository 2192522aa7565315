"""What rows must keep: expectations, the facts that they are judged by, and the one pass that checks them."""
