"""The real training step compiled for devices that are only described: does it fit, how fast."""
