"""What is read off a compiled program, against programs whose loops and traffic are known."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from t5_engine.hlo import CollectiveStats, Program, array_bytes, device_groups

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
        "all-gather": CollectiveStats(24, 24 * 32 * 4),
        "all-reduce": CollectiveStats(1, 4 * 2 * 2),
    }
    assert program.loop_factor() == pytest.approx((300 + 24 * 100) / (300 + 100))


def test_a_loop_without_a_limit_is_no_guess() -> None:
    with pytest.raises(ValueError, match=r"loop w\.1"):
        Program(TPU.replace("constant(24)", "parameter(1)"))


def test_pieces_of_one_collective_count_once() -> None:
    piece = "  %ag.{} = f32[32]{{0}} all-gather(%p.4), channel_id={}, dimensions={{0}}\n"
    pieces = piece.format(1, 7) + piece.format(2, 7) + piece.format(3, 8)
    text = TPU.replace("  %ar.1", pieces + "  %ar.1")
    assert Program(text).collectives()["all-gather"] == CollectiveStats(24 + 2, (24 + 2) * 32 * 4)


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
    program = Program(text.stdout)
    # Rows of `model` are devices 0, 1 and 2, 3: nothing leaves slices of two, everything leaves slices of one.
    assert program.between_slices(2) == {}
    assert program.between_slices(1) == program.collectives()
    assert program.collectives() == {
        "all-reduce": CollectiveStats(5, 5 * 8 * 64 * 4),
        "all-gather": CollectiveStats(1, 8 * 64 * 4),
    }


@pytest.mark.parametrize(
    "rest, groups",
    [
        ("%x), channel_id=3, replica_groups={{0,2},{1,3}}, dimensions={1}", [[0, 2], [1, 3]]),
        ("%x), replica_groups=[2,4]<=[8], dimensions={0}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("%x), replica_groups=[4,2]<=[2,4]T(1,0)", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("%x), source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, x={1}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("%x), replica_groups=mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("%x), replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("%x), replica_groups={}, to_apply=%add", None),
    ],
)
def test_groups_of_devices(rest: str, groups: list[list[int]] | None) -> None:
    assert device_groups(rest) == groups


def test_what_the_tpu_compiler_sends_between_slices() -> None:
    """Its collectives stay within slices then; each transfer is one `recv` from the hosts, the layers' in a loop."""
    attributes = (
        'channel_id=11, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale'
        '_runtime",_xla_megascale_transfer_type="ALL_GATHER"}'
    )
    recv = f"  %recv.1 = (f32[2,16]{{1,0}}, u32[], token[]) recv(%after-all.1), {attributes}\n"
    done = f"  %recv-done.1 = (f32[2,16]{{1,0}}, token[]) recv-done(%recv.1), {attributes}\n"
    other = "  %recv.2 = (f32[9]{0}, u32[], token[]) recv(%after-all.1), channel_id=12\n"
    text = TPU.replace("  %ar.1", recv + done + other + "  %ar.1")
    [(kind, stats)] = [
        (kind, stats)
        for kind, stats in Program(text).between_slices(10_000).items()
        if kind == "all-gather"
    ]
    assert stats.bytes == stats.count * 2 * 16 * 4 and stats.count >= 1
