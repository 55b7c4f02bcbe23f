"""What is read off a compiled program, against programs whose loops and traffic are known."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from t5_engine.hlo import Program, Travel, array_bytes

# As the TPU compiler writes it: no known trip count, asynchronous collectives, cycles.
TPU = """HloModule jit_f, is_scheduled=true

%fused (p.1: f32[8]) -> f32[8] {
  ROOT %p.1 = f32[8]{0:T(128)} parameter(0)
}

%body.1 (p.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %g.1 = f32[8]{0:T(128)} get-tuple-element(%p.2), index=1
  %ags.1 = (f32[8]{0:T(128)}, f32[32]{0:T(128)}) all-gather-start(%g.1), dimensions={0}
  %agd.1 = f32[32]{0:T(128)} all-gather-done(%ags.1)
  %f.1 = f32[8]{0:T(128)} fusion(%g.1), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  ROOT %t.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%p.2, %f.1)
}

%condition.1 (p.3: (s32[], f32[8])) -> pred[] {
  %c.1 = s32[]{:T(128)} constant(24)
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %g.2 = s32[]{:T(128)} get-tuple-element(%p.3), index=0
  ROOT %lt.1 = pred[]{:T(512)} compare(%g.2, %c.1), direction=LT
}

ENTRY %main.1 (p.4: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.4 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %ar.1 = bf16[4,2]{1,0:T(8,128)} all-reduce(%p.4), to_apply=%fused, backend_config={"estimated_cycles":"300"}
  ROOT %w.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p.4), condition=%condition.1, body=%body.1
}
"""


def test_a_loop_counts_as_often_as_it_runs() -> None:
    program = Program(TPU)
    assert program.runs["body.1"] == 24
    assert program.runs["fused"] == 24 + 1
    assert program.collectives() == {
        "all-gather": Travel(24, 24 * 32 * 4),
        "all-reduce": Travel(1, 4 * 2 * 2),
    }
    assert program.loop_factor() == pytest.approx((300 + 24 * 100) / (300 + 100))


def test_a_loop_without_a_limit_is_no_guess() -> None:
    with pytest.raises(ValueError, match=r"loop w\.1"):
        Program(TPU.replace("constant(24)", "parameter(1)"))


def test_pieces_of_one_collective_count_once() -> None:
    piece = "  %ag.{} = f32[32]{{0}} all-gather(%p.4), channel_id={}, dimensions={{0}}\n"
    pieces = piece.format(1, 7) + piece.format(2, 7) + piece.format(3, 8)
    text = TPU.replace("  %ar.1", pieces + "  %ar.1")
    assert Program(text).collectives()["all-gather"] == Travel(24 + 2, (24 + 2) * 32 * 4)


def test_sizes_of_arrays() -> None:
    assert array_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4], pred[], /*index=3*/s32[5]{0})") == [
        24,
        8,
        1,
        20,
    ]


# Five layers of x[B_data, K] W[K_model, K]: each sums its product [B / 2, K] over `model`.
LAYERS = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec
mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
on = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
array = lambda shape, *axes: jax.ShapeDtypeStruct(shape, "float32", sharding=on(*axes))
held = jax.lax.with_sharding_constraint

def layer(x, kernel):
    return held(jax.numpy.tanh(held(held(x, on("data", "model")) @ kernel, on("data"))), on("data")), None

layers = lambda x, kernels: jax.lax.scan(layer, x, kernels)[0]
arguments = array((16, 64), "data"), array((5, 64, 64), None, "model")
print(jax.jit(layers, out_shardings=on("data")).lower(*arguments).compile().as_text())
"""


def test_collectives_of_a_program_known_by_hand() -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", LAYERS]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    # The loop hands its x [8, 64] on split over `model`, so the result is gathered once, after the loop.
    assert Program(text.stdout).collectives() == {
        "all-reduce": Travel(5, 5 * 8 * 64 * 4),
        "all-gather": Travel(1, 8 * 64 * 4),
    }
