"""A mixture of experts one token and one expert at a time: slow and obvious."""

import jax
import jax.numpy as jnp


def moe_per_token(config, params, x):
    """x (tokens, width) -> (tokens, width), as `springroll.models.moe.moe` should."""
    return jax.lax.map(lambda row: _token(config, params, row), x)


def _token(config, params, x):
    logits = params["gate"] @ x
    score = jax.nn.softmax(logits) if config.router == "softmax" else jax.nn.sigmoid(logits)
    preference = score + params.get("e_score_correction_bias", jnp.zeros_like(score))
    chosen = jnp.argsort(-jax.lax.stop_gradient(preference))[: config.top_k]
    weights = score[chosen]
    if config.renormalise:
        weights = weights / weights.sum()
    experts, y = params["experts"], jnp.zeros_like(x)
    for i in range(config.top_k):
        w = {name: value[chosen[i]] for name, value in experts.items()}
        hidden = jax.nn.silu(w["gate_proj"] @ x) * (w["up_proj"] @ x)
        y = y + weights[i] * (w["down_proj"] @ hidden)
    return y
