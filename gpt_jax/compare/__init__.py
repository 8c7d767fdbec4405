"""Compares runs of several seeds: which differences are real, by how much, and at what cost."""
