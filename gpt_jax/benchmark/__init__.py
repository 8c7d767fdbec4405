"""Measurements of the real program: how fast it trains, and where the time goes."""
