"""8-bit weights: one scale a row, and a product that stays near the exact one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2jax import quantize
from r2jax.quantize import DTYPES, WIDE, Quantization

quantize_rows = jax.jit(quantize.quantize_rows, static_argnums=1)
quantized_product = jax.jit(quantize.quantized_product)

KINDS: tuple[Quantization, ...] = ("fp8", "int8")
TOP = {"fp8": 448.0, "int8": 127.0}
# Half a step of rounding, relative to the value (fp8: 3 bits of mantissa) or to the row's largest.
HALF_STEP = {"fp8": 2.0**-4, "int8": 0.5 / 127}
rows = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def random(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def widened(narrow: jax.Array, scale: jax.Array) -> np.ndarray:
    return np.asarray(narrow).astype(np.float64) * np.asarray(scale, np.float64)[..., None]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_narrowed_as_numpy_does(kind: Quantization):
    x = random(0, 3, 4, 33) * np.array([1e-3, 1, 1e3], np.float32)[:, None, None]
    narrow, scale = quantize_rows(jnp.asarray(x), DTYPES[kind])
    expected = np.abs(x).max(-1) / np.float32(TOP[kind])
    np.testing.assert_allclose(scale, expected, rtol=1e-6)
    divided = x / np.asarray(scale)[..., None]
    if kind == "int8":
        divided = np.rint(divided)
    np.testing.assert_array_equal(
        np.asarray(narrow).astype(np.float32), divided.astype(DTYPES[kind]).astype(np.float32)
    )


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)  # each shape compiles
@given(x=rows)
def test_what_is_narrowed_is_near_what_was_there(kind: Quantization, x: np.ndarray):
    narrow, scale = quantize_rows(jnp.asarray(x), DTYPES[kind])
    assert narrow.dtype == DTYPES[kind] and scale.dtype == jnp.float32
    assert narrow.shape == x.shape and scale.shape == x.shape[:-1]
    assert np.isfinite(np.asarray(narrow).astype(np.float32)).all()  # e4m3 has no infinity: NaN
    largest = np.abs(x).max(-1, keepdims=True)
    # fp8's numbers below 2^-6 are 2^-9 apart: half of that, in units of the largest.
    bound = HALF_STEP[kind] * (np.abs(x) if kind == "fp8" else largest)
    bound = bound + largest * 2.0**-10 / 448 * (kind == "fp8")
    assert (np.abs(widened(narrow, scale) - x) <= bound * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind: Quantization):
    x = random(1, 3, 8)
    x[1] = 0
    narrow, scale = quantize_rows(jnp.asarray(x), DTYPES[kind])
    assert (np.asarray(narrow).astype(np.float32)[1] == 0).all() and np.asarray(scale).min() > 0
    weight, weight_scale = quantize_rows(jnp.asarray(random(2, 4, 8)), DTYPES[kind])
    y = quantized_product(jnp.asarray(x), weight, weight_scale)
    assert (np.asarray(y)[1] == 0).all() and (np.asarray(y)[0] != 0).all()
    y = quantized_product(jnp.asarray(random(2, 4, 8)), narrow, scale)
    assert (np.asarray(y)[:, 1] == 0).all() and (np.asarray(y)[:, 0] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("tokens", [3, WIDE])  # wide products in bfloat16 sum into bfloat16
def test_a_product_is_near_the_exact_one(kind: Quantization, dtype: jnp.dtype, tokens: int):
    """Within what the rounding of both sides allows: |x| |w| times twice half a step."""
    x = jnp.asarray(random(3, 1, tokens, 96), dtype)
    w = random(4, 16, 96) * 10.0 ** random(5, 16, 1)  # rows of all sizes: each has its scale
    y = quantized_product(x, *quantize_rows(jnp.asarray(w), DTYPES[kind]))
    assert y.dtype == dtype and y.shape == (1, tokens, 16)
    wide = np.asarray(x).astype(np.float64)
    exact = wide @ w.astype(np.float64).T
    if kind == "fp8":
        sizes = np.abs(wide) @ np.abs(w).T
    else:  # a step is a share of the row's largest
        sizes = np.abs(wide).max(-1, keepdims=True) * np.abs(w).sum(-1)
        sizes = sizes + np.abs(wide).sum(-1, keepdims=True) * np.abs(w).max(-1)
        sizes = sizes / 2
    share = float(jnp.finfo(dtype).eps) * (2 if tokens == WIDE else 1)
    error = np.abs(np.asarray(y).astype(np.float64) - exact)
    assert (error <= sizes * (2.1 * HALF_STEP[kind]) + np.abs(exact) * share).all()
    # And far nearer on the whole: roundings cancel like noise.
    typical = np.sqrt(np.mean(error**2 / (wide**2 @ (w**2).T)))
    assert 1e-3 < typical < {"fp8": 0.045, "int8": 0.015}[kind]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)  # each shape compiles
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    d_in=st.integers(1, 9),
    d_out=st.integers(1, 5),
)
def test_a_product_is_that_of_the_widened_operands(
    kind: Quantization, shape: list[int], d_in: int, d_out: int
):
    x = jnp.asarray(random(6, *shape, d_in))
    weight, scale = quantize_rows(jnp.asarray(random(7, d_out, d_in)), DTYPES[kind])
    expected = widened(*quantize_rows(x, DTYPES[kind])) @ widened(weight, scale).T
    np.testing.assert_allclose(
        quantized_product(x, weight, scale), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )
