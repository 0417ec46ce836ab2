"""A decoder in three parts, for training that walks its layers one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from springroll.models.cross_entropy import cross_entropy
from springroll.models.decoder import Decoder, Params
from springroll.models.norm import rms_norm


class Stages(NamedTuple):
    """embed: (params, tokens) -> x. block: (one layer, x, its index) -> (x, statistics). finish:
    (params, x, stacked statistics, tokens (batch, time + 1)) -> (loss, metrics)."""

    embed: Callable[[Params, Array], Array]
    block: Callable[[Params, Array, Array], tuple[Array, Any]]
    finish: Callable[[Params, Array, Any, Array], tuple[Array, dict[str, Array]]]


def stages(model: Decoder) -> Stages:
    """The parts of which `model.loss` is made; `embed` and `finish` do not look at the layers."""
    config = model.config

    def block(layer: Params, x: Array, index: Array) -> tuple[Array, Any]:
        windows = model.windows(x.shape[1])
        return model.block(layer, x, None, None if windows is None else windows[index])

    def finish(
        params: Params, x: Array, stats: Any, tokens: Array
    ) -> tuple[Array, dict[str, Array]]:
        x = rms_norm(x, params["norm"], config.norm_eps)
        nats = cross_entropy(x, model.head_weight(params), tokens[:, 1:])
        if not stats:
            return nats, {"nats": nats}
        switch, z = jnp.mean(stats["switch"]), jnp.mean(stats["z"])
        total = nats + config.switch_loss * switch + config.z_loss * z
        return total, {"nats": nats, "load": stats["load"], "switch": switch, "z": z}

    return Stages(model.embed, block, finish)
