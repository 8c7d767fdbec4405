"""Training: the state, the loss, the jitted program and the loop that drives it."""
