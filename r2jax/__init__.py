"""R²-dLLM in JAX: masked-diffusion language models decoded by one jitted program."""
