"""Training: the state, the loss, the jitted program, and the trainer that drives it."""
