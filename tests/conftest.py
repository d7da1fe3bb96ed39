"""Settings that must stand before jax and r2jax are imported; pytest reads this file first."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib.metadata import version

# Eight virtual devices, so that a mesh is tested on any machine, one without an accelerator too.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# The tests compile more than they compute. Without LLVM's optimisations they take a quarter less;
# XLA's older emitters build a loop in half the time, where jaxlib still has them (0.12 does not).
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        *["--xla_cpu_use_fusion_emitters=false"] * version("jaxlib").startswith("0.10."),
    ]
)

import hypothesis
import jax
from jaxtyping import install_import_hook

# Two programs of five are those of another test, or were dropped by `jax.clear_caches`: a process
# keeps what it has compiled until it ends. Each has a directory of its own, for JAX writes files in
# place: where two share one, the first reads what the second has half written.
CACHE = tempfile.mkdtemp(prefix="r2jax-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

# Shapes and dtypes are checked at run time here only, and only where arrays go in and out: the
# modules at the boundary (configuration, files, text) refuse wrong values themselves, and the
# tests want to see that.
CHECKED = (
    "attention",
    "cache",
    "decode",
    "denoise",
    "model",
    "modules",
    "predict",
    "redundancy",
    "trace",
    "transfer",
)
install_import_hook([f"r2jax.{name}" for name in CHECKED], "beartype.beartype")

# A first call compiles, so no deadline; CI draws the same examples every time.
hypothesis.settings.register_profile("r2jax", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("r2jax")


def pytest_collection_finish() -> None:
    """The collector looks no more at what the imports made, which is there to stay."""
    gc.freeze()
