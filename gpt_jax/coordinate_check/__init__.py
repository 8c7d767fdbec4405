"""Scales of activations against the width of the model, over the first steps of training."""
