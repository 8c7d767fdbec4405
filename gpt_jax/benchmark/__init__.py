"""Measurements of the real programs: how fast a config trains and generates here."""
