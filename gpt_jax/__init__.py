"""gpt_jax: GPT from scratch in JAX and Flax. Importing this package does no device work."""
