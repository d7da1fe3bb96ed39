"""What a compiled decode program exchanges between devices: this much and nothing else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import r2jax
from r2jax.program import KINDS, Collective, collectives, cost, summary
from r2jax.sharding import make_mesh, named_sharding
from r2jax.spread import decode_on
from r2jax.topology import abstract_model
from tests import golden_cases as golden

CONFIG = golden.model("tiny-a").config
BATCH, LENGTH, GEN, PROMPT = 4, 16, 64, 64
BLOCK, STEP = 1, 2  # depth of the refresh, and of a block step


def compiled(sizes: dict[str, int], trace: bool = False, **options: Any) -> jax.stages.Compiled:
    """A decode program for the first devices, arranged in a mesh."""
    count = sizes.get("data", 1) * sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    model = abstract_model(
        lambda: r2jax.Transformer(CONFIG, fused=True, mesh=mesh, rngs=nnx.Rngs(0)), mesh
    )
    rows = named_sharding(mesh, ("batch",))
    decoding = r2jax.DecodeConfig(gen_length=GEN, block_length=LENGTH, **options)
    static, scalars = decoding.split(CONFIG.eos_id, trace=trace)
    keys = None
    if static.needs_key:
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), BATCH))
        keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=rows)
    tokens = jax.ShapeDtypeStruct((BATCH, PROMPT), jnp.int32, sharding=rows)
    lengths = jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=rows)
    return decode_on(mesh).lower(model, tokens, lengths, static, scalars, keys).compile()


def found(program: jax.stages.Compiled) -> list[Collective]:
    return collectives(program.as_text() or "")


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({"tensor": 2}, {}),
        ({"tensor": 4}, {}),
        ({"data": 2, "tensor": 2}, {"temperature": 0.7, "top_p": 0.8, "stop_at_eos": True}),
    ],
    ids=str,
)
def test_tensor_parallel_decode_adds_up_activations(sizes: dict[str, int], options: dict[str, Any]):
    """Two all-reduces of activations a layer and one after the embedding, in a refresh (its last
    layer goes on with the block's columns alone) and in a block step each; for the vocabulary a few
    numbers a position; nothing of a weight's or the vocabulary's size."""
    rows = BATCH // sizes.get("data", 1)
    rest = everything = found(compiled(sizes, **options))
    layers = CONFIG.num_layers
    for depth, columns, count in (
        (BLOCK, GEN + PROMPT, 2 * (layers - 1) + 1),
        (BLOCK, LENGTH, 2),
        (STEP, LENGTH, 2 * layers + 1),
    ):
        activations = Collective(
            "all-reduce",
            (f"f32[{rows},{columns},{CONFIG.hidden_size}]",),
            4 * rows * columns * CONFIG.hidden_size,
            depth,
        )
        assert everything.count(activations) == count
        rest = [one for one in rest if one != activations]
    assert {one.kind for one in rest} <= {"all-reduce", "all-gather"}
    # Arg-max: each device's best and its token. Residual mass and nucleus: numbers a position.
    assert max(one.bytes for one in rest) <= 4 * rows * LENGTH * sizes["tensor"]
    if not options:
        assert [one.depth for one in rest] == [BLOCK] * 4 + [STEP] * 4


@pytest.mark.parametrize("options", [{}, {"cache": "none", "stop_at_eos": True}], ids=str)
def test_data_parallel_decode_asks_only_whether_a_row_is_unfinished(options: dict[str, Any]):
    program = compiled({"data": 4}, trace=True, **options)
    asked = Collective("all-reduce", ("pred[]",), 1, BLOCK)
    assert sorted(found(program)) == [asked, asked._replace(depth=STEP)]


def test_a_mesh_for_training_moves_logits_at_every_step():
    """Why `check_decode_mesh` refuses it."""
    moved = found(compiled({"fsdp": 2}))
    logits = 4 * BATCH // 2 * LENGTH * CONFIG.vocab_size
    assert max(one.bytes for one in moved if one.depth == STEP) >= logits


def test_cost_of_a_program():
    n, k, m = 64, 128, 256
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    x = jax.ShapeDtypeStruct((n, k), jnp.float32, sharding=named_sharding(mesh, (None, "heads")))
    w = jax.ShapeDtypeStruct((k, m), jnp.float32, sharding=named_sharding(mesh, ("heads", None)))
    whole = named_sharding(mesh, (None, None))
    program = cost(jax.jit(jnp.matmul, out_shardings=whole).lower(x, w).compile())
    assert program.argument_bytes == 4 * (n * k + k * m) // 2
    assert program.output_bytes == 4 * n * m
    assert program.collectives == [Collective("all-reduce", (f"f32[{n},{m}]",), 4 * n * m, 0)]
    assert program.flops is not None and program.flops >= 2 * n * k * m / 2
    assert program.total_bytes >= program.argument_bytes + program.output_bytes


TEXT = """HloModule m
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}
%wrapped (p: bf16[8,4]) -> bf16[8,4] {
  ROOT %r = bf16[8,4]{1,0:T(8,128)(2,1)S(1)} all-reduce(%p), to_apply=%add
}
%body.1 (p: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %g = ((f32[2,4]{1,0}), f32[8,4]{1,0}) all-gather-start(%x), dimensions={0}
  %gd = f32[8,4]{1,0} all-gather-done(%g)
  %c = bf16[8,4] fusion(%y), kind=kCustom, calls=%wrapped
  %d = ((bf16[8,4]), bf16[8,4], s32[]) async-start(%y), calls=%wrapped
}
%cond.1 (p: (s32[], bf16[8,4])) -> pred[] {
  ROOT %any = pred[] all-reduce(%q), to_apply=%add
}
ENTRY %main (p: bf16[8,4]) -> bf16[8,4] {
  %two = (f32[3]{0}, s4[6]{0}) all-reduce(%u, %v), to_apply=%add
  %w = (s32[], bf16[8,4]) while(%t), condition=%cond.1, body=%body.1
  %k = (f8e4m3fn[5], f8e4m3fn[5]) collective-permute-start(%z)
}
"""


def test_collectives_of_a_text():
    """Variadic ones, those started and awaited apart, those inside of fusions and loops."""
    assert collectives(TEXT) == [
        Collective("all-reduce", ("f32[3]", "s4[6]"), 12 + 3, 0),
        Collective("collective-permute", ("f8e4m3fn[5]",), 5, 0),
        Collective("all-reduce", ("pred[]",), 1, 1),
        Collective("all-gather", ("f32[8,4]",), 128, 1),
        Collective("all-reduce", ("bf16[8,4]",), 64, 1),
        Collective("all-reduce", ("bf16[8,4]",), 64, 1),
    ]
    assert [count for _, count in summary(collectives(TEXT))] == [1, 2, 1, 1, 1]
    assert {one.kind for one in collectives(TEXT)} <= set(KINDS)
