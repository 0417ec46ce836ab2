"""A tiny decoder in host memory, and the same trained as a whole to hold it against."""

import dataclasses
import functools

import jax
import numpy as np
import optax

from springroll.models.decoder import decoder, leaves
from springroll.models.decoder_config import named
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.fill_store import stacked_leaves
from springroll.stream.host_adamw import AdamW
from springroll.stream.host_update import HostUpdate
from springroll.stream.streamed import Streamed

LR = 1e-2
# Adam's step is m / (sqrt(v) + EPS). With the usual 1e-8 an entry whose gradient is 1e-7, known to
# a few per cent after sums that nearly cancel, moves as far as any other, and so does its error.
EPS = 1e-2
# Two float32 sums of the same n terms in different order differ by about sqrt(n) 2^-24 of their
# size. Here n is at most 256, and a gradient stands behind some 16 such sums, one after another.
ROUNDING = (256 * 16) ** 0.5 * 2**-24  # of a gradient, relative to it
# An error e of a gradient moves Adam's step by 2 e / EPS at most; the step itself is at least
# m / (LARGEST + EPS).
LARGEST = 0.1  # no sqrt(v) is larger
STEP_ROUNDING = 2 * (1 + LARGEST / EPS) * ROUNDING  # of what a step changes, relative to it


@functools.cache
def model(name="llama-tiny", layers=3):
    return decoder(dataclasses.replace(named(name), layers=layers))


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0))


def tokens(seed=1, rows=4, time=8):
    return jax.random.randint(jax.random.key(seed), (rows, time + 1), 0, 256)


def adam():
    return optax.adam(LR, eps=EPS)


def update(where, optimizer=None, **more):
    optimizer = optimizer or adam()
    if where == "device":
        return DeviceUpdate(optimizer, **more)
    return HostUpdate(AdamW(LR, eps=EPS, weight_decay=0.0), optimizer, threads=2, **more)


def streamed(model, where="device", optimizer=None, **options):
    trainer = Streamed(model, shapes(model), update(where, optimizer), **options)
    return trainer, trainer.fill(stacked_leaves(leaves(model.config, jax.random.key(0))))


@functools.cache
def gradient(model):
    """((loss, figures), gradient) of the whole model."""
    return jax.jit(jax.value_and_grad(model.loss, has_aux=True))


def whole(model, steps, optimizer=None):
    """(params, loss and norm of each step) of ordinary training."""
    optimizer = optimizer or adam()

    @jax.jit
    def change(params, state, grads):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grads)

    params, seen = started(model), []
    state = optimizer.init(params)
    for i in range(steps):
        (loss, _), grads = gradient(model)(params, tokens(i))
        params, state, norm = change(params, state, grads)
        seen.append((float(loss), float(norm)))
    return params, seen


def arrays(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def distance(a, b):
    squares = lambda x, y: float(np.sum(np.square(x.astype(np.float32) - y.astype(np.float32))))
    return sum(map(squares, arrays(a), arrays(b))) ** 0.5


@functools.cache
def started(model):
    return model.init(jax.random.key(0))
