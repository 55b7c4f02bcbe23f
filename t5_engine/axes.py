"""The table of logical-axis rules, and what follows from it for each array of a training step.

Every parameter names its logical axes where it is declared (`t5_engine.layers`), activations where they are
computed. `rules` maps these names to the two axes of the mesh: `data`, over which the batch is split, and `model`,
over which weights are. Everything else derives from that: initial layout, optimizer's state, batch, checkpoints.

Written as A[I_X, J_Y]: a kernel W[embed, mlp_model] is split over `model` only and whole on each device of `data`;
with FSDP it is kept as W[embed_data, mlp_model] and gathered over `data` for the moment of its use.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Sequence

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flipped_core.errors import UserError

DATA = "data"
MODEL = "model"

# From a logical axis to a mesh axis; None is "every device has all of it".
Rules = Sequence[tuple[str, str | None]]
Names = Sequence[str | None]

RULES: Rules = (
    ("batch", DATA),
    ("vocab", MODEL),
    ("joined_kv", MODEL),
    ("mlp", MODEL),
    ("embed", None),
    ("layers", None),
    # Small things, not worth splitting: the norms' scales and the tables of relative positions.
    ("norm", None),
    ("heads", None),
    ("relpos_buckets", None),
)


def rules(fsdp: bool = False) -> Rules:
    """`RULES`, or with `fsdp` those that split every large parameter over `data` too, along D."""
    if not fsdp:
        return RULES
    return tuple((name, DATA if name == "embed" else axis) for name, axis in RULES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules that lay arrays out on it.

    Attributes:
      mesh: with axes "data" and "model".
      rules: of the arrays as they are kept: `rules()`.
    """

    mesh: Mesh
    rules: Rules = RULES

    def __post_init__(self) -> None:
        seen: dict[str, str | None] = {}
        for name, axis in self.rules:
            if seen.setdefault(name, axis) != axis:
                raise UserError(
                    f"rules: logical axis {name!r} is mapped to both {seen[name]!r} and {axis!r}"
                )
            if axis is not None and axis not in self.mesh.shape:
                raise UserError(
                    f"rules: logical axis {name!r} is mapped to {axis!r}, but the mesh has the axes "
                    f"{', '.join(map(repr, self.mesh.shape))}"
                )

    def sharding(self, names: Names, what: str, shape: Sequence[int] = ()) -> NamedSharding:
        """How an array with these logical axes is kept.

        Args:
          names: a logical axis for each dimension; None for one that is never split.
          what: the array's name, for errors.
          shape: its sizes, where they are to be checked.

        Raises:
          UserError: an axis without a rule, two that are mapped to one mesh axis, or a size that is not a
            multiple of the mesh axis that splits it.
        """
        table = dict(self.rules)
        axes: list[str | None] = []
        for name in names:
            if name is not None and name not in table:
                raise UserError(f"{what}: no rule for its logical axis {name!r}")
            axis = None if name is None else table[name]
            if axis is not None and axis in axes:
                raise UserError(
                    f"{what}: its logical axes {names[axes.index(axis)]!r} and {name!r} are both mapped "
                    f"to mesh axis {axis!r}"
                )
            axes.append(axis)
        for size, axis in zip(shape, axes, strict=False):
            if axis is not None and size % self.mesh.shape[axis]:
                raise UserError(
                    f"{what}: size {size} is not a multiple of the {self.mesh.shape[axis]} devices "
                    f"of mesh axis {axis!r}"
                )
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def in_use(self) -> Layout:
        """The layout of what is being computed with: weights are gathered over `data` then."""
        return Layout(self.mesh, RULES)


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@contextlib.contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """What is traced inside knows the layout, so that `constrain` and `gathered` act.

    A mesh of one device has nothing to lay out: there, and outside, both leave their argument as it is.
    """
    token = _LAYOUT.set(layout if layout.mesh.size > 1 else None)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def data_size() -> int:
    """The devices over which the batch is split, where a layout is known; else 1."""
    layout = _LAYOUT.get()
    return 1 if layout is None else layout.mesh.shape[DATA]


def platform() -> str:
    """What is computed on: of the layout's devices, which need not be this machine's; without one JAX's default."""
    layout = _LAYOUT.get()
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """An activation, laid out by its logical axes; without it the compiler may split D instead of the batch."""
    layout = _LAYOUT.get()
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, layout.in_use.sharding(names, "an activation"))


def gathered(weight: jax.Array, *names: str) -> jax.Array:
    """A weight as it is used: whole over `data`. Its gradient comes back as the weight is kept, summed and split.

    Cast the weight before, so that what travels is no wider than what is computed with.
    """
    layout = _LAYOUT.get()
    if layout is None:
        return weight
    kept, used = layout.sharding(names, "a weight"), layout.in_use.sharding(names, "a weight")
    if kept == used:
        return weight

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, used)

    # A plain constraint would hold for the gradient too, and each device would get all of it.
    gather.defvjp(
        lambda x: (gather(x), None),
        lambda _, gradient: (jax.lax.with_sharding_constraint(gradient, kept),),
    )
    return gather(weight)
