"""Programs that convert checkpoints between Hugging Face's layout and r2jax's, and compare them."""
