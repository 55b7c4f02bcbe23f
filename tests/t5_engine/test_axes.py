"""The table of rules: every parameter is covered, and what does not fit is refused by name."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from flipped_core.errors import UserError
from t5_engine import axes, optimizer, partitioning
from t5_engine.axes import Layout
from t5_engine.config import SIZES
from t5_engine.model import abstract_params
from t5_engine.step import make_state, state_shardings


def mesh(data, model):
    return AbstractMesh((data, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def changed(**changes):
    return tuple((name, changes.get(name, axis)) for name, axis in axes.RULES)


def test_kernels_are_split_over_model_and_with_fsdp_over_data_too():
    names = ("layers", "embed", "mlp")
    plain, sharded = (Layout(mesh(4, 2), axes.rules(fsdp)) for fsdp in (False, True))
    assert plain.sharding(names, "x").spec == P(None, None, "model")
    assert sharded.sharding(names, "x").spec == P(None, "data", "model")
    assert sharded.in_use.sharding(names, "x").spec == P(None, None, "model")
    assert sharded.sharding(("batch", None), "x").spec == P("data", None)


@pytest.mark.parametrize("name", ["small", "xl", "xxl"])
def test_fsdp_leaves_each_device_its_share_of_parameters_and_optimizer_state(name):
    """On 4 x 2 devices an eighth, but for what is too small to be worth splitting."""
    config = SIZES[name]
    transform = optimizer.make("adafactor", 1e-3)
    abstract = jax.eval_shape(lambda: make_state(config, transform, 0))
    shardings = state_shardings(abstract, config, Layout(mesh(4, 2), axes.rules(fsdp=True)))

    def numbers(leaf, sharding):
        return np.array([np.prod(sharding.shard_shape(leaf.shape)), np.prod(leaf.shape)])

    for part in ("params", "opt_state"):
        pairs = jax.tree.map(numbers, getattr(abstract, part), getattr(shardings, part))
        held, all_of_it = np.sum(jax.tree.leaves(pairs), axis=0)
        limit = 0.126 if part == "params" else 0.51  # its vectors lose one of the two mesh axes
        assert held / all_of_it < limit, part


def test_factored_moments_lie_as_the_dimension_that_is_left():
    """Adafactor's mean over D of a kernel [L, D, F] is [L, F], and the other way round; also where D = F."""
    config = SIZES["small"].replace(mlp_dim=512)
    transform = optimizer.make("adafactor", 1e-3)
    abstract = jax.eval_shape(lambda: make_state(config, transform, 0))
    opt_state = state_shardings(
        abstract, config, Layout(mesh(4, 2), axes.rules(fsdp=True))
    ).opt_state
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(opt_state)
    }

    def spec(kind, kernel):
        [name] = [name for name in found if f"/{kind}/decoder/layers/{kernel}" in name]
        return found[name]

    # optax: v_row is the mean over the largest dimension, v_col over the second largest.
    assert spec("v_row", "self_attention/query") == P(None, "model")  # [512, 384]
    assert spec("v_col", "self_attention/query") == P(None, "data")
    assert spec("v_row", "mlp/wo") == P(None, "model")  # [512, 512]: the later one is the largest
    assert spec("v_col", "mlp/wo") == P(None, "data")
    assert spec("v", "pre_mlp_layer_norm") == P(None, None)


def test_optax_takes_the_means_as_the_layouts_suppose():
    """The same law on numbers: `v_row` of a square parameter loses its last dimension."""
    state = optimizer.optax.scale_by_factored_rms(min_dim_size_to_factor=2)
    ones = np.ones((2, 2), np.float32)
    gradient = np.array([[1.0, 1.0], [3.0, 3.0]], np.float32)
    _, state = state.update({"w": gradient}, state.init({"w": ones}), {"w": ones})
    assert np.ptp(state.v_row["w"]) > 1 and np.ptp(state.v_col["w"]) == 0


def test_rules_that_collide_name_the_parameter_and_both_axes():
    with pytest.raises(
        UserError, match=r"parameter .*kernel: its logical axes 'embed' and '\w+' are both mapped"
    ):
        partitioning.param_shardings(SIZES["small"], Layout(mesh(4, 2), changed(embed="model")))


def test_a_parameter_without_a_rule_is_named():
    rules = tuple(rule for rule in axes.RULES if rule[0] != "mlp")
    with pytest.raises(UserError, match=r"parameter .*/mlp/.*: no rule for its logical axis 'mlp'"):
        partitioning.param_shardings(SIZES["small"], Layout(mesh(4, 2), rules))


def test_sizes_that_the_mesh_does_not_divide_are_named():
    with pytest.raises(UserError, match=r"parameter .*: size \d+ is not a multiple of the 5 dev"):
        partitioning.param_shardings(SIZES["small"], Layout(mesh(1, 5)))


@pytest.mark.parametrize(
    "rules, message",
    [
        ((*axes.RULES, ("mlp", "data")), "'mlp' is mapped to both 'model' and 'data'"),
        (changed(mlp="modle"), "'mlp' is mapped to 'modle', but the mesh has"),
    ],
)
def test_impossible_tables_are_refused(rules, message):
    with pytest.raises(UserError, match=message):
        Layout(mesh(4, 2), rules)


def test_every_logical_axis_of_the_model_has_a_rule():
    import flax.linen as nn

    from t5_engine.model import init_boxed

    boxed = jax.eval_shape(lambda key: init_boxed(SIZES["tiny"], key), jax.random.key(0))
    specs = jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=lambda x: isinstance(x, P))
    assert len(specs) == len(jax.tree.leaves(abstract_params(SIZES["tiny"])))
    assert {axis for spec in specs for axis in spec} <= {axis for axis, _ in axes.RULES}


class Device:
    """What `host_share` sees of a device."""

    def __init__(self, process_index):
        self.process_index = process_index


def fake_mesh(processes, data, model):
    """A mesh whose devices belong to processes 0, 0, …, 1, 1, … in order."""
    per_process = data * model // processes
    devices = np.array([Device(i // per_process) for i in range(data * model)], object)

    class Mesh:
        shape = {"data": data, "model": model}

    Mesh.devices = devices.reshape(data, model)
    return Mesh


@pytest.mark.parametrize(
    "processes, data, model, batch",
    [(1, 8, 1, 240), (2, 4, 2, 240), (4, 2, 4, 240), (32, 64, 2, 240), (2, 1, 4, 6), (7, 7, 1, 6)],
)
def test_processes_bring_every_row_once(processes, data, model, batch):
    """Those that hold the same rows bring the same; all bring as many, whatever divides the batch."""
    mesh = fake_mesh(processes, data, model)
    rows = np.arange(1, batch + 1)
    brought = {}
    for process in range(processes):
        share = partitioning.host_share(mesh, batch, process)
        per_share = batch // share.count
        assert batch % share.count == 0
        mine = rows[share.index * per_share : (share.index + 1) * per_share]
        held = tuple(
            i for i in range(data) if any(d.process_index == process for d in mesh.devices[i])
        )
        found = share.rows({"x": mine})["x"]
        np.testing.assert_array_equal(brought.setdefault(held, found), found)
    assert len({len(found) for found in brought.values()}) == 1
    everything = np.concatenate([brought[held] for held in sorted(brought)])
    assert sorted(everything[everything > 0]) == rows.tolist()


def test_processes_that_share_a_copy_unevenly_are_refused():
    mesh = fake_mesh(4, 2, 6)  # three devices each, six to a copy of the weights
    assert partitioning.host_share(mesh, 6, 3).count == 2
    mesh = fake_mesh(4, 3, 4)  # three devices each, four to a copy
    with pytest.raises(UserError, match="model_parallelism"):
        partitioning.host_share(mesh, 6, 0)
