"""The optimizers of `springroll train` by name: optax transformations, and what drives them."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from springroll.models.decoder import Decoder
from springroll.train.backprop import TrainConfig
from springroll.train.learners import Learner, optax_learner

Schedule = Callable[[Any], Any]

# Peak learning rates for models of 1M to 5M parameters (docs/lowgrad.md has the grid).
LR = {
    "adamw": 5e-3,
    "galore": 2e-2,
    "apollo": 1e-2,
    "apollo-mini": 1e-2,
    "fira": 2e-2,
    "muon": 2e-2,
    "lowgrad": 2e-2,
}
MUON_ADAM_SHARE = 0.25  # Muon's learning rate is for orthogonal steps; Adam's, for the rest, below
UNLIMITED_WARMUP = 1000  # steps that `warmup` is a share of when the schedule has no end

PROJECTED = re.compile(r"layers/.*_proj$")  # the matrices of a block; not router, embedding, head


def learner_for(config: TrainConfig, model: Decoder) -> Learner:
    """What trains `model` as configured."""
    init = lambda key: model.init(key, jnp.dtype(config.dtype))
    return optax_learner(model.loss, init, transformation(config, model))


def transformation(config: TrainConfig, model: Decoder) -> optax.GradientTransformation:
    """Clipping, then the optimizer with its schedule, its state in as many bits as asked for."""
    inner = OPTIMIZERS[config.optimizer](config, model)
    clip = optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip)
    return optax.chain(clip, inner)


def learning_rate(config: TrainConfig) -> Schedule:
    """Linear warm-up to the peak, then down to a tenth over `schedule_steps`; or constant."""
    peak = LR[config.optimizer] if config.lr is None else config.lr
    steps = config.schedule_steps
    rise = round(config.warmup * (steps or UNLIMITED_WARMUP))
    warm = optax.linear_schedule(peak / (rise + 1), peak, rise)
    if steps is None or config.schedule == "constant":
        fall = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, max(1, steps - rise), alpha=0.1)
    else:
        fall = optax.linear_schedule(peak, peak / 10, max(1, steps - rise))
    return optax.join_schedules([warm, fall], [rise])


def matrices(params: Any) -> Any:
    """A tree of booleans: which leaves are matrices of a block."""
    spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: PROJECTED.search(spelt(path)) is not None, params
    )


def adamw(config: TrainConfig, model: Decoder) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(config),
        b1=config.b1,
        b2=config.b2,
        weight_decay=config.weight_decay,
        mask=matrices,
    )


def muon(config: TrainConfig, model: Decoder) -> optax.GradientTransformation:
    """Muon for the matrices of a block, batched over layers and experts; Adam for the rest."""
    from optax.contrib import MuonDimensionNumbers

    rate = learning_rate(config)
    out_in = MuonDimensionNumbers(reduction_axis=-1, output_axis=-2)
    return optax.contrib.muon(
        rate,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=lambda step: MUON_ADAM_SHARE * rate(step),
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda matrix: out_in if matrix else None, matrices(params)
        ),
    )


OPTIMIZERS: dict[str, Callable[[TrainConfig, Decoder], optax.GradientTransformation]] = {
    "adamw": adamw,
    "muon": muon,
}
