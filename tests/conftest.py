"""Settings that must stand before jax and r2jax are imported; pytest reads this file first."""

import os

# Eight virtual devices, so that a mesh is tested on any machine, one without an accelerator too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The tests compile more than they compute: without LLVM's optimisations they take a quarter less.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"

import hypothesis
from jaxtyping import install_import_hook

# Shapes and dtypes are checked at run time here only, and only where arrays go in and out: the
# modules at the boundary (configuration, files, text) refuse wrong values themselves, and the
# tests want to see that.
CHECKED = (
    *("attention", "cache", "decode", "denoise", "model", "predict", "redundancy", "trace"),
    "transfer",
)
install_import_hook([f"r2jax.{name}" for name in CHECKED], "beartype.beartype")

# A first call compiles, so no deadline; CI draws the same examples every time.
hypothesis.settings.register_profile("r2jax", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("r2jax")
