"""The loop with the real strategy: floats, momentum, a sharded population; bit for bit."""

import io
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

import springroll as sr
from springroll.run import session
from springroll.run.checkpoint import differing_paths
from springroll.run.config import RunConfig
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from springroll.run.rebuild import replay
from springroll.run.task import Task

POP, WIDTH = 16, 8


def score(params, x, y):
    hidden = jnp.tanh(x @ params["first"])
    return -jnp.mean((hidden @ params["second"] - y) ** 2)


def task(mesh):
    """Regression on fresh data every generation, members without memory."""
    es = sr.eggroll(pop_size=POP, sigma=0.05, optimizer=optax.sgd(0.2, momentum=0.9), mesh=mesh)

    def init():
        keys = jax.random.split(jax.random.key(0), 3)
        first = jax.random.normal(keys[0], (WIDTH, WIDTH))
        params = {"first": first, "second": jax.random.normal(keys[1], (WIDTH, 2))}
        return jax.jit(es.init)(keys[2], params), None

    def batch(generation):
        x = np.random.default_rng(generation).normal(size=(4, WIDTH)).astype(np.float32)
        return x, np.sin(x[:, :2])

    @jax.jit
    def evaluate(state, members, carry, data):
        fitness = sr.evaluate(score, state, members, *data)
        return fitness, carry, {"train_bits_per_byte": -fitness.mean()}

    return Task(
        init=init,
        batch=batch,
        ask=jax.jit(es.ask),
        evaluate=evaluate,
        tell=partial(jax.jit, donate_argnums=0)(es.tell),
        pop_size=POP,
        tokens=POP * 4,
    )


def train(path, made, generations=12):
    config = RunConfig(generations=generations, log_every=0.0)
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    return folder, run(config, made, folder, console=Console(file=io.StringIO()))


@pytest.mark.parametrize("devices", [1, 4])
def test_killed_resumed_and_replayed_to_the_last_bit(tmp_path, monkeypatch, devices):
    monkeypatch.setattr(session, "draw_curve", lambda *_, **__: None)
    monkeypatch.setattr("springroll.run.metrics._board", lambda *_: None)
    mesh = None if devices == 1 else jax.make_mesh((devices,), ("population",))
    made = task(mesh)
    _, undisturbed = train(tmp_path / "a", made)

    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "b", replace(made, batch=lambda g: made.batch(g + 0 // (8 - g))))
    folder, resumed = train(tmp_path / "b", made)
    assert differing_paths(resumed.state, undisturbed.state) == []

    found = replay(made, folder)
    assert found.equal and found.generation == 12
    assert differing_paths(found.state, undisturbed.state) == []
    assert float(undisturbed.summary["train_bits_per_byte"]) > 0
