"""Generation for many users at once."""
