"""Measurements of the real programs: the speed of training and generation."""
