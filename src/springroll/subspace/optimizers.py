"""The optimizers by name: one table that `springroll train`, streaming and the planner read.

An entry says how to build the optax transformation, what its default learning rate is, and how it
can be used. What it keeps per parameter is asked of the transformation itself: `jax.eval_shape` of
its `init`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from springroll.models.protocols import LanguageModel
from springroll.quant.quantize_state import quantize_state
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import adam_direction
from springroll.subspace.projection import ProjectionOptions
from springroll.subspace.stored_basis import BasisBits
from springroll.subspace.streams import smaller_side
from springroll.thin.discovery import discover
from springroll.thin.roles import WeightRoles
from springroll.trees import PyTree, map_named

Update = Literal["host", "device", "lowgrad"]
StateBits = Literal[32, 8, 4]

BLOCK_MATRIX = re.compile(r"layers/.*_proj$")  # no router, embedding or head
MUON_ADAM_SHARE = 0.25  # Muon's learning rate is for orthogonal steps; Adam's, for the rest, below


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What a transformation of the table is built with.

    learning_rate: number or schedule; b1, b2: decay of the first and second moment;
    state_bits: bits per number of the moments; the rest is for projecting optimizers:
    rank: of the subspaces; select: which parameters, path -> bool; roles: of their axes,
    from `sr.discover`; refresh_interval: steps between two refreshes of a projector; basis_bits:
    per number of the bases that are stored; scale: factor of the projected update, None for the
    method's own; seed: of random projections.
    """

    learning_rate: optax.ScalarOrSchedule
    b1: float = 0.9
    b2: float = 0.999
    state_bits: StateBits = 32
    rank: int = 1
    select: Callable[[str], bool] | None = None
    roles: WeightRoles | None = None
    refresh_interval: int = 200
    basis_bits: BasisBits = 32
    scale: float | None = None
    seed: int = 0


class Subspaces(TypedDict, total=False):
    """The settings that only projecting optimizers have."""

    rank: int
    select: Callable[[str], bool]
    roles: WeightRoles


Build = Callable[[OptimizerSettings], optax.GradientTransformation]


def quantized(
    settings: OptimizerSettings, tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`tx` with moments of `state_bits`."""
    return tx if settings.state_bits == 32 else quantize_state(tx, bits=settings.state_bits)


def adam(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Adam; weight decay is added by whoever wants it."""
    tx = optax.adam(settings.learning_rate, b1=settings.b1, b2=settings.b2)
    return quantized(settings, tx)


def _muon(settings: OptimizerSettings) -> optax.GradientTransformation:
    """Muon for the matrices of a block, batched over layers and experts; Adam for the rest."""
    rate = settings.learning_rate
    share = lambda step: MUON_ADAM_SHARE * (rate(step) if callable(rate) else rate)
    out_in = optax.contrib.MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
    tx = optax.contrib.muon(
        rate,
        adam_b1=settings.b1,
        adam_b2=settings.b2,
        adam_learning_rate=share,
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda matrix: out_in if matrix else None, block_matrices(params)
        ),
    )
    return quantized(settings, tx)


def _galore(settings: OptimizerSettings) -> optax.GradientTransformation:
    return galore(adam(settings), settings.rank, **_scale(settings), **_projection(settings))


def _fira(settings: OptimizerSettings) -> optax.GradientTransformation:
    return fira(settings.learning_rate, settings.rank, **_adam_part(settings))


def _apollo(settings: OptimizerSettings) -> optax.GradientTransformation:
    return apollo(settings.learning_rate, settings.rank, **_adam_part(settings))


def _apollo_mini(settings: OptimizerSettings) -> optax.GradientTransformation:
    return apollo_mini(settings.learning_rate, settings.rank, **_adam_part(settings))


def _projection(settings: OptimizerSettings) -> ProjectionOptions:
    return {
        "refresh_interval": settings.refresh_interval,
        "basis_bits": settings.basis_bits,
        "select": settings.select,
        "roles": settings.roles,
        "seed": settings.seed,
    }


class _Scale(TypedDict, total=False):
    scale: float


class _AdamPart(ProjectionOptions, _Scale):
    b1: float
    b2: float
    direction: optax.GradientTransformation


def _scale(settings: OptimizerSettings) -> _Scale:
    return {} if settings.scale is None else {"scale": settings.scale}


def _adam_part(settings: OptimizerSettings) -> _AdamPart:
    """Options of APOLLO and Fira, which have Adam inside."""
    return {
        "b1": settings.b1,
        "b2": settings.b2,
        "direction": quantized(settings, adam_direction(settings.b1, settings.b2)),
        **_scale(settings),
        **_projection(settings),
    }


@dataclass(frozen=True, kw_only=True)
class OptimizerEntry:
    """An optimizer of the table.

    description: a few words for people.
    learning_rate: the default peak, for models of 1M to 5M parameters (docs/lowgrad.md has the
        grids).
    build: the transformation of a whole model, or of one layer as {"layers": layer}; where
        gradients only exist in subspaces ("lowgrad" in `updates`), that of the trainable tree.
    rest: the transformation of what is in no layer, where layers are updated one by one.
    updates: where streamed layers can be updated: by exact kernels on the host, on the device, or
        in a subspace, which is on the device all the time; none where a model is not updated, which
        is not streamed.
    state_bits: the bits per number that its state can have.
    projects: whether it works in subspaces of the matrices, so that its settings need `rank`,
        `select` and `roles`.
    bases: whether it stores their bases; APOLLO draws them anew.
    rank: the default rank, also of adapters; None is a quarter of the hidden size.
    """

    description: str
    learning_rate: float
    build: Build
    rest: Build = adam
    updates: tuple[Update, ...] = ("device",)
    state_bits: tuple[StateBits, ...] = (32, 8, 4)
    projects: bool = False
    bases: bool = False
    rank: int | None = None

    @property
    def layerwise(self) -> bool:
        """Whether it can update one layer at a time, during the backward pass."""
        return "device" in self.updates

    def streamed_updates(self, state_bits: StateBits, exact: bool) -> tuple[Update, ...]:
        """Where streamed layers can be updated.

        Args:
            state_bits: the bits per number of the state; the host's kernels know 32 only.
            exact: whether weights are float32, or bfloat16 with their lower halves beside them.
        """
        host = state_bits == 32 and exact
        return tuple(where for where in self.updates if where != "host" or host)


OPTIMIZERS: dict[str, OptimizerEntry] = {
    "adamw": OptimizerEntry(
        description="exact AdamW",
        learning_rate=2.5e-3,
        build=adam,
        updates=("host", "device"),
    ),
    "muon": OptimizerEntry(
        description="Muon for matrices, Adam for the rest",
        learning_rate=1e-2,
        build=_muon,
    ),
    "galore": OptimizerEntry(
        description="Adam on projected gradients",
        learning_rate=1e-2,
        build=_galore,
        projects=True,
        bases=True,
    ),
    "fira": OptimizerEntry(
        description="GaLore, and the rest of the gradient scaled alike",
        learning_rate=1e-2,
        build=_fira,
        projects=True,
        bases=True,
    ),
    "apollo": OptimizerEntry(
        description="gradients scaled per channel, as Adam would in a random subspace",
        learning_rate=5e-3,
        build=_apollo,
        projects=True,
    ),
    "apollo-mini": OptimizerEntry(
        description="a scale per matrix from a rank of one",
        learning_rate=5e-3,
        build=_apollo_mini,
        projects=True,
        rank=1,
    ),
    "lowgrad": OptimizerEntry(
        description="gradients that only exist in a subspace",
        learning_rate=2.5e-3,
        build=adam,
        updates=("lowgrad",),
        projects=True,
        bases=True,
    ),
    "lora": OptimizerEntry(
        description="AdamW on low-rank adapters beside a frozen model",
        learning_rate=5e-3,
        build=adam,
        updates=(),
        rank=16,
    ),
}


def is_block_matrix(path: str) -> bool:
    """Whether a parameter is a matrix of a block."""
    return BLOCK_MATRIX.search(path) is not None


def block_matrices(params: PyTree) -> PyTree:
    """A tree of booleans: which leaves are matrices of a block."""
    return map_named(lambda path, _: is_block_matrix(path), params)


def axis_roles(model: LanguageModel, params: PyTree = None) -> WeightRoles:
    """Which axes of each parameter are inputs, outputs and stacks; nothing is computed.

    Args:
        model: whose parameters are trained.
        params: their shapes, where they are known.
    """
    if params is None:
        params = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    return discover(model.loss, params, jax.ShapeDtypeStruct((1, 9), jnp.int32))


def subspaces(
    entry: OptimizerEntry,
    model: LanguageModel,
    rank: int | None = None,
    roles_of: Callable[[Any], WeightRoles] = axis_roles,
) -> Subspaces:
    """The subspaces that an optimizer works in; nothing is computed.

    A rank that was asked for is that of every matrix of a block, or its smaller side where that is
    less. With the default rank, matrices that are narrower (keys and values of grouped attention)
    are left to Adam.

    Args:
        entry: of the table.
        model: whose parameters are trained.
        rank: as asked for, or None.
        roles_of: `axis_roles`, or one that remembers.
    """
    if not entry.projects:
        return {}
    roles = roles_of(model)
    matrices = [leaf for leaf in roles.values() if is_block_matrix(leaf.path)]
    if rank is not None:
        return {"rank": rank, "select": is_block_matrix, "roles": roles}
    default = entry.rank or max(1, model.config.hidden // 4)
    wide = {leaf.path for leaf in matrices if smaller_side(leaf) >= default}
    return {"rank": default, "select": wide.__contains__, "roles": roles}
