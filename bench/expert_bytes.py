"""Experts counted: parameters, bytes of gradients and optimizer state, of a step, and sent.

Nothing here is trained. Counts are taken from shapes, from the compiler's buffer assignment and
from the compiled program; see `bench.expert_granular`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bench import lowgrad_communication as communication
from springroll.bench.lowgrad_memory import adamw, low_rank, peak_bytes
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import CONFIGS, DecoderConfig
from springroll.quant.quantize_state import quantize_state
from springroll.subspace.galore import galore
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.streams import ThinLeaf
from springroll.subspace.trainer import Trainer

DEVICES = communication.DEVICES
ADAM = 8  # bytes per parameter of both moments in float32


def is_expert(path: str) -> bool:
    """Whether a parameter is a matrix of an expert, or its moment."""
    return "/experts/" in path and path.endswith("_proj")


def parameters(config: DecoderConfig) -> dict[str, float]:
    """Of one model: parameters, those a token meets, and what the two numbers have to do with."""
    total, active = config.parameters, config.active_parameters
    return {
        "total": total,
        "active": active,
        "ratio": total / active,
        "forward_flops_per_token": 2.0 * active,
        "weights_bytes": 2 * total,  # bfloat16
        "adam_bytes": ADAM * total,
    }


def expert_state(name: str, rank: int) -> dict[str, dict[str, int]]:
    """Bytes that the matrices of the experts have in each scheme, weights not counted.

    gradient: of the experts, in float32, all alive together. bases: the projectors. low: S, which
    `lowgrad` keeps in float32 between two merges. moments: of the optimizer.
    """
    model = decoder(CONFIGS[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    experts = sum(x.size for x in _experts(params))
    eight = quantize_state(optax.adamw(1e-3))
    wrapped = galore(eight, rank, rows="out", select=is_expert, basis_bits=16)
    inner = jax.eval_shape(wrapped.init, params)
    rows = {
        "AdamW, float32": _row(4 * experts, moments=ADAM * experts),
        "AdamW, 8 bits": _row(4 * experts, moments=_expert_bytes(_state(eight, params))),
        "galore, own bases in bfloat16, 8 bits": _row(
            4 * experts, _expert_bytes(inner.projectors), 0, _expert_bytes(inner.inner)
        ),
    }
    for own, bits in ((True, 32), (True, 8), (False, 32), (False, 8)):
        optimizer = optax.adamw(1e-3) if bits == 32 else eight
        trainer = expert_trainer(model, params, optimizer, rank, own)
        state = jax.eval_shape(trainer.init, params)
        low = _bytes(state.low)
        label = f"lowgrad, {'own' if own else 'shared'} bases, {bits} bits"
        rows[label] = _row(low, _bytes(state.projectors), low, _expert_bytes(state.opt))
    return rows


def expert_trainer(
    model: Decoder, params: Any, optimizer: optax.GradientTransformation, rank: int, own: bool
) -> Trainer:
    """`sr.lowgrad` on the experts alone; `own`: no basis is shared among the experts of a layer."""
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    return lowgrad(
        model.loss,
        params,
        optimizer,
        tokens,
        rank=rank,
        select=is_expert,
        own_experts=own,
        has_aux=True,
    )


def step_memory(name: str, rank: int, batch: int, tokens: int) -> dict[str, dict[str, int]]:
    """Temporary and peak bytes of a step, full and low-rank, blocks recomputed or not.

    `lowgrad` has two more programs, which run when layers get new subspaces: their largest peak is
    `refresh_peak`.
    """
    rows = {}
    for remat in (False, True):
        model = decoder(CONFIGS[name], remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0))
        example = jax.ShapeDtypeStruct((batch, tokens + 1), jnp.int32)
        for label, make in (("AdamW", adamw), ("lowgrad", low_rank(rank))):
            programs = make(model, params, example)
            stats = programs[""].memory_analysis()
            assert stats is not None
            peaks = {suffix: peak_bytes(program) for suffix, program in programs.items()}
            rows[f"{label}, {'recomputed' if remat else 'kept'}"] = {
                "temporary": stats.temp_size_in_bytes,
                "peak": peaks[""],
                "refresh_peak": max(peaks.values()),
            }
    return rows


def weight_gradient_share(config: DecoderConfig, rank: int) -> float:
    """rho: FLOPs of the low-rank weight gradients of the blocks beside those of full ones.

    A token costs 2 r (m + n) and not 2 m n; x P is counted again for every weight that shares P,
    as a bound from above for them.
    """
    model = decoder(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    select = lambda path: path.endswith("_proj")
    trainer = lowgrad(
        model.loss, params, optax.sgd(1.0), tokens, rank=rank, select=select, has_aux=True
    )
    low = full = 0.0
    for leaf in trainer.layout.thin.values():
        share = config.top_k / config.experts if is_expert(leaf.path) else 1.0
        m, n, matrices = _matrix(leaf)
        low += share * matrices * rank * (m + n)
        full += share * matrices * m * n
    return low / full


def most_speedup(utilisation: float, rho: float) -> float:
    """How many times faster a step can become at most, if the faster one runs at the full peak.

    Of three equal parts of a step (forward, gradient of activations, gradient of weights) one
    shrinks to rho; a baseline that uses the share `utilisation` of the peak can gain the rest.
    (The other way round: given a speed-up, the largest utilisation at which it is possible.)
    """
    return 3 / (2 + rho) / utilisation


def sent(name: str, rank: int) -> dict[str, int]:
    """Bytes all-reduced per step and device on 8 devices; needs them, see `sent_elsewhere`.

    Every device routes its own tokens, then gradients are averaged. (Without `shard_map` the
    compiler sorts the tokens of all devices together and sends activations as well.)
    """
    model = decoder(CONFIGS[name])
    whole, split = communication.shardings()
    loss = on_each_device(model, whole.mesh)
    params = communication.placed(jax.eval_shape(model.init, jax.random.key(0)), whole)
    tokens = jax.ShapeDtypeStruct((len(jax.devices()), 65), "int32", sharding=split)
    optimizer = optax.adamw(1e-3)
    select = communication.in_blocks
    trainer = lowgrad(loss, params, optimizer, tokens, rank=rank, select=select)
    state = communication.placed(jax.eval_shape(trainer.init, params), whole)
    ours = trainer.lower("step", state, tokens)
    both = lambda params, tokens: (loss(params, tokens), None)
    full = jax.jit(communication.full_step(both, optimizer), donate_argnums=(0, 1))
    moments = communication.placed(jax.eval_shape(optimizer.init, params), whole)
    theirs = full.lower(params, moments, tokens)
    count = lambda lowered: communication.all_reduced(lowered.compile().as_text() or "")
    found = {"lowgrad": count(ours), "AdamW": count(theirs)}
    matrices = 4 * sum(leaf.inputs * leaf.outputs * _stack(leaf) for leaf in _thin(trainer))
    low = 4 * sum(rank * leaf.outputs * _stack(leaf) for leaf in _thin(trainer))
    everything = {label: sum(sizes.values()) for label, sizes in found.items()}
    return everything | {
        "AdamW, blocks": matrices,
        "lowgrad, blocks": low,
        "rest": everything["AdamW"] - matrices,
        "lowgrad, rest": everything["lowgrad"] - low,
    }


def on_each_device(model: Decoder, mesh: Any) -> Any:
    """The mean over devices of the loss of each one's share of the batch."""
    spec = jax.sharding.PartitionSpec

    def mine(params: Any, tokens: Any) -> Any:
        return jax.lax.pmean(model.loss(params, tokens)[0], "data")

    return jax.shard_map(
        mine, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec(), check_vma=False
    )


def sent_elsewhere(name: str, rank: int) -> dict[str, int]:
    """`sent`, in a process of its own that has 8 (fake) devices."""
    flag = f"--xla_force_host_platform_device_count={DEVICES}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    code = f"import json; from {__name__} import sent; print(json.dumps(sent({name!r}, {rank!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _row(gradient: int, bases: int = 0, low: int = 0, moments: int = 0) -> dict[str, int]:
    state = bases + low + moments
    return {"gradient": gradient, "bases": bases, "low": low, "moments": moments, "state": state}


def _state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    return jax.eval_shape(optimizer.init, params)


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _experts(tree: Any) -> list[Any]:
    """The leaves of a tree that belong to matrices of experts."""
    spelt = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    named = jax.tree_util.tree_leaves_with_path(tree)
    return [x for path, x in named if "/experts/" in f"/{spelt(path)}/" and "_proj" in spelt(path)]


def _expert_bytes(tree: Any) -> int:
    return _bytes(_experts(tree))


def _thin(trainer: Trainer) -> list[ThinLeaf]:
    return list(trainer.layout.thin.values())


def _stack(leaf: ThinLeaf) -> int:
    """How many matrices with a basis of their own; experts that share one are outputs together."""
    size = 1
    for axis in leaf.sizes("s"):
        size *= axis
    return size


def _matrix(leaf: ThinLeaf) -> tuple[int, int, int]:
    """(inputs, outputs, matrices) of a weight, whether or not its experts share a basis."""
    n = leaf.shape[-2]  # (out, in)
    size = 1
    for axis in leaf.shape[:-2]:
        size *= axis
    return leaf.shape[-1], n, size
