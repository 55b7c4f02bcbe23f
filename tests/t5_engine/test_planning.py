"""Plans for machines that are not at hand: their numbers against closed forms, and what is tried until it fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flipped_cli.plan import config_of
from t5_engine import config, planning, speed, topologies
from t5_engine.model import abstract_params
from t5_engine.planning import StepConfig
from t5_engine.topologies import Topology

MODEL = config.size("tiny", dropout_rate=0.0, unroll_layers=False)


def _machine(name: str = "h100:1", memory: int = 2**34) -> Topology:
    parsed = topologies.parse(name)
    return Topology(parsed, jax.devices("cpu")[: parsed.chips], memory, 1e12, None, False)


@pytest.mark.parametrize("method", ["direct", "flipped"])
def test_flops_are_the_closed_form(method: str) -> None:
    """The traced step's matrix products are what `speed.step_flops` derives from the sizes."""
    step = StepConfig(MODEL, method, batch_size=4, inputs=32, targets=16)
    found = planning.train_step(step, _machine())
    expected = 4 * speed.step_flops(MODEL, 32, 16, with_wrong=method == "flipped")
    assert found.flops == pytest.approx(expected, rel=1e-6)
    assert found.seconds is None and found.fits is True
    params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(MODEL)))
    assert found.memory["arguments"] >= 4 * params
    assert found.collectives == {}


def test_remat_and_microbatches_in_the_count() -> None:
    def flops(**changes: Any) -> float:
        model = MODEL.replace(remat=changes.pop("remat", "none"))
        step = StepConfig(model, "direct", batch_size=4, inputs=32, targets=16, **changes)
        return planning.train_step(step, _machine()).flops

    whole = flops()
    assert flops(microbatches=2) == pytest.approx(whole, rel=1e-6)
    # The forward pass is computed once more, but for the logits and each layer's last product, which nothing needs.
    logits = 4 * 2 * 16 * MODEL.emb_dim * MODEL.vocab_size
    last = 2 * 4 * (32 + 16) * 2 * MODEL.mlp_dim * MODEL.emb_dim
    assert flops(remat="full") == pytest.approx(whole + whole / 3 - logits - last, rel=1e-6)


def test_the_scorer_is_planned_too() -> None:
    found = planning.scoring(StepConfig(MODEL, inputs=16, targets=8, batch_size=4), _machine())
    assert set(found) == {"encode", "decode"} and all(one.flops > 0 for one in found.values())


def test_calls_of_unknown_cost_count_nothing() -> None:
    call = '  %c = f32[8]{0} custom-call(%p), custom_call_target="ConcatBitcast"'
    text = "\n".join(["ENTRY %main (p: f32[8]) -> f32[8] {", call, call, "}"])
    program = planning.Program(text)
    assert planning.seconds_once({"optimal_seconds": -1.75}, program) == 0.25
    assert planning.seconds_once({"optimal_seconds": -2.5}, program) is None
    assert planning.seconds_once({"optimal_seconds": 0.5}, planning.Program("")) == 0.5


def test_the_peak_of_memory_counts_what_is_overwritten_once() -> None:
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)

    def peak(**donated: int) -> int:
        compiled = jax.jit(lambda x: x + 1.0, **donated).trace(x).lower().compile()  # type: ignore[call-overload]
        return planning.memory_by_kind(compiled.memory_analysis(), is_tpu=False)["peak"]

    assert 8000 <= peak() < 9000 and 4000 <= peak(donate_argnums=0) < 5000


def test_a_refusal_for_want_of_memory() -> None:
    message = "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 31.25G of 15.75G hbm."
    assert planning.out_of_memory(message) == round(31.25 * 2**30)
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (29.23G) exceeds "
        "available HBM (15.75G)."
    )
    assert planning.out_of_memory(message) == round(29.23 * 2**30)
    assert planning.out_of_memory("INTERNAL: something else") is None


def test_changes_begin_with_the_smallest() -> None:
    words = [words for words, _ in planning.changes(StepConfig(MODEL), 8)]
    assert words[:3] == ["remat minimal", "remat full", "remat full, 2 microbatches"]
    assert "remat full, FSDP" in words and words[-1] == "remat full, FSDP, model parallelism 8"
    already = StepConfig(MODEL.replace(remat="full"), fsdp=True)
    assert [words for words, _ in planning.changes(already, 2)] == [
        "2 microbatches",
        "4 microbatches",
        "model parallelism 2",
    ]


def test_the_first_change_that_fits_is_told_and_no_other_is_compiled() -> None:
    tried: list[str] = []

    def fits(words: str, config: StepConfig) -> bool:
        tried.append(words)
        return config.microbatches == 4

    found = planning.smallest_fit(planning.changes(StepConfig(MODEL), 1), fits)
    assert found == "remat full, 4 microbatches" == tried[-1]
    assert planning.smallest_fit(planning.changes(StepConfig(MODEL), 1), lambda *_: False) is None


def test_rows_are_padded_for_mesh_and_microbatches() -> None:
    assert planning.shape(StepConfig(MODEL, microbatches=2), 32).rows == 256


def test_the_peak_of_the_cpu_compiler_is_no_smaller_than_what_it_contains() -> None:
    memory = planning.train_step(StepConfig(MODEL, batch_size=4, inputs=32, targets=16), _machine())
    parts = memory.memory
    assert parts["peak"] >= parts["temporary"] > 0
    assert (
        parts["peak"]
        == parts["arguments"] + parts["outputs"] - parts["aliased"] + parts["temporary"]
    )


def test_gpus_are_held_to_a_share_of_their_memory() -> None:
    step = StepConfig(MODEL, batch_size=4, inputs=32, targets=16)
    peak = planning.train_step(step, _machine()).memory["peak"]
    assert planning.train_step(step, _machine(memory=round(peak / 0.89))).fits is True
    assert planning.train_step(step, _machine(memory=round(peak / 0.91))).fits is False


def test_proposals_for_gpus_begin_with_what_costs_least() -> None:
    tried = list(planning.proposals(StepConfig(config.size("xl")), 16, 8))
    assert all(step.fsdp and 8 % step.model_parallelism == 0 for step in tried)
    words = [(s.model_parallelism, s.model.remat, s.microbatches) for s in tried]
    assert words[:4] == [
        (1, "minimal", 1),
        (1, "minimal", 2),
        (1, "minimal", 4),
        (1, "full", 1),
    ]
    assert words[-1] == (8, "full", 8)
    # 4 rows on each of 64 devices: no more microbatches than that.
    few = list(planning.proposals(StepConfig(config.size("xl")), 64, 8))
    assert max(step.microbatches for step in few if step.model_parallelism == 1) == 4


def test_the_first_proposal_that_fits() -> None:
    compiled: list[StepConfig] = []

    def stats(step: StepConfig) -> planning.CompileStats:
        compiled.append(step)
        fits = step.model.remat == "full"
        return planning.CompileStats(fits, {"peak": 1}, 1.0, None, None, {}, {}, 1.0)

    found = planning.first_fit(planning.proposals(StepConfig(MODEL), 8, 8), stats)
    assert found is not None and found[0] == compiled[-1] and found[0].microbatches == 1
    assert planning.first_fit(iter([StepConfig(MODEL)]), stats) is None


@pytest.mark.parametrize("method, rows", [("direct", (52, 60)), ("flipped", (88, 104))])
def test_packed_rows_follow_from_the_lengths(method: str, rows: tuple[int, int]) -> None:
    """Of the mixtures' lengths at 512/128: about a quarter of the padded batch's rows, for FLIPPED of its 480."""
    step = config_of("xl", method, True, batch_size=240, inputs=512, targets=128)
    assert step.lengths is not None and len(step.lengths) == 480
    for data in (1, 4):
        found = planning.shape(step, data)
        assert rows[0] <= found.rows <= rows[1] and found.rows % data == 0
        assert found.inputs == 512
    padded = dataclasses.replace(step, lengths=None)
    assert planning.shape(padded, 64) == (256, 512, 128)
    assert planning.mean_lengths(step)[0] < 120 and planning.mean_lengths(padded) == (512, 128)


def test_packed_steps_are_planned() -> None:
    lengths = tuple((8 + n % 9, 2 + n % 5) for n in range(30))
    step = StepConfig(MODEL, batch_size=12, inputs=32, targets=16)
    padded = planning.train_step(step, _machine())
    packed = planning.train_step(dataclasses.replace(step, lengths=lengths), _machine())
    assert packed.flops < 0.6 * padded.flops
