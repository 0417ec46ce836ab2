"""A run's optimizer: the entry of the table with the run's learning rate, clipping, rounding."""

from collections.abc import Callable

import jax
import optax

from springroll.models.decoder import stages
from springroll.models.moe import balance
from springroll.models.protocols import LanguageModel, Stages
from springroll.quant.split_master import high_half, with_split_master
from springroll.quant.stochastic_rounding import with_stochastic_rounding
from springroll.subspace.layerwise import layerwise
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.optimizers import (
    OPTIMIZERS,
    OptimizerSettings,
    block_matrices,
    subspaces,
)
from springroll.subspace.trainer import Trainer
from springroll.train.config import TrainConfig
from springroll.train.learners import (
    Layout,
    Learner,
    Loss,
    Metrics,
    layerwise_learner,
    lowgrad_learner,
    optax_learner,
)
from springroll.train.lora import lora_learner
from springroll.trees import PyTree

UNLIMITED_WARMUP = 1000  # steps that `warmup` is a share of when the schedule has no end


def learner_for(
    config: TrainConfig,
    model: LanguageModel,
    init: Callable[[jax.Array], PyTree],
    loss: Loss | None = None,
    layout: Layout | None = None,
    parts: Stages | None = None,
) -> Learner:
    """What trains `model` as configured, from the float32 parameters that `init` makes of a key.

    `loss` is the model's own by default, of text; `layerwise` has no other, but may have other
    `parts`. `layout`: of a state that is divided over devices, which that of `lowgrad` is not.
    """
    loss = model.loss if loss is None else loss
    if config.optimizer == "lora":
        return lora_learner(config, model, adapter_optimizer(config, model), loss)
    if config.optimizer == "lowgrad":
        cast = lambda key: jax.tree.map(lambda x: x.astype(config.dtype), init(key))
        trainer = low_rank_trainer(config, model, cast, loss)
        return lowgrad_learner(trainer, cast, balanced)
    narrow = high_half if config.dtype == "bfloat16" else lambda params: params
    if config.layerwise:
        layers, rest = layer_optimizers(config, model)
        trainer = layerwise(parts or stages(model), layers, rest, clip=config.clip)
        return layerwise_learner(trainer, init, narrow=narrow, adjust=balanced, layout=layout)
    tx = OPTIMIZERS[config.optimizer].build(settings_of(config, model))
    tx = rounded(config, clipped(config, decayed(config, tx)))
    return optax_learner(
        loss,
        init,
        tx,
        narrow=narrow,
        accumulate=config.accumulate,
        adjust=balanced,
        layout=layout,
    )


def adapter_optimizer(config: TrainConfig, model: LanguageModel) -> optax.GradientTransformation:
    """AdamW on all numbers of adapters."""
    adam = OPTIMIZERS[config.optimizer].build(settings_of(config, model))
    return clipped(
        config, decayed(config, adam, lambda params: jax.tree.map(lambda _: True, params))
    )


def layer_optimizers(
    config: TrainConfig, model: LanguageModel
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """What updates one layer at a time, {"layers": one}, and what updates all else: Adam."""
    entry, settings = OPTIMIZERS[config.optimizer], settings_of(config, model)
    layers = decayed(config, entry.build(settings))
    return rounded(config, layers), rounded(config, entry.rest(settings))


def settings_of(config: TrainConfig, model: LanguageModel) -> OptimizerSettings:
    """What the table's transformation is built with for this run."""
    return OptimizerSettings(
        learning_rate=learning_rate(config),
        b1=config.b1,
        b2=config.b2,
        state_bits=config.state_bits,
        refresh_interval=config.steps_between,
        basis_bits=config.basis_bits,
        scale=config.scale,
        seed=config.seed,
        **subspaces(OPTIMIZERS[config.optimizer], model, config.rank),
    )


def rounded(config: TrainConfig, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` for weights of the configured type: bfloat16 ones lose no update."""
    if config.dtype == "float32":
        return tx
    split = config.rounding == "split"
    return with_split_master(tx) if split else with_stochastic_rounding(tx, config.seed)


def low_rank_trainer(
    config: TrainConfig, model: LanguageModel, init: Callable[[jax.Array], PyTree], loss: Loss
) -> Trainer:
    """`sr.lowgrad` on the matrices of the blocks."""
    entry, settings = OPTIMIZERS[config.optimizer], settings_of(config, model)
    return lowgrad(
        loss,
        jax.eval_shape(init, jax.random.key(0)),
        clipped(config, entry.build(settings)),
        roles=settings.roles,
        rank=settings.rank,
        select=settings.select,
        refresh_interval=settings.refresh_interval,
        turns=1 if config.refresh == "random" else 4,
        refresh=config.refresh,
        scale=settings.scale,
        basis_bits=settings.basis_bits,
        accumulate=config.accumulate,
        has_aux=True,
        seed=settings.seed,
    )


def clipped(config: TrainConfig, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    return tx if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), tx)


def balanced(params: PyTree, figures: Metrics) -> PyTree:
    """Params with the routers' selection biases moved towards an even load, where there are any."""
    layers = params["layers"]
    bias = layers.get("mlp", {}).get("e_score_correction_bias")
    if bias is None:
        return params
    moved = jax.vmap(balance)(bias, figures["load"])
    return params | {"layers": layers | {"mlp": layers["mlp"] | {"e_score_correction_bias": moved}}}


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Linear warm-up to the peak, then down to a tenth over `schedule_steps`; or constant."""
    peak = OPTIMIZERS[config.optimizer].learning_rate if config.lr is None else config.lr
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


def decayed(
    config: TrainConfig,
    tx: optax.GradientTransformation,
    decays: Callable[[PyTree], PyTree] = block_matrices,
) -> optax.GradientTransformation:
    """`tx`, and lr weight_decay W off every matrix of a block, or of what `decays` says: AdamW's
    decay for any optimizer."""
    if not config.weight_decay:
        return tx
    rate = learning_rate(config)
    share = lambda step: -config.weight_decay * rate(step)
    return optax.chain(tx, optax.add_decayed_weights(share, mask=decays))
