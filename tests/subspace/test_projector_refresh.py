"""Whose turn it is, what a turn does, and that nothing happens between turns."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.subspace import projector_refresh
from springroll.subspace.basis import svd_basis
from springroll.subspace.galore import galore
from springroll.subspace.matrix_view import MatrixView
from springroll.subspace.projection import Projection
from springroll.subspace.projector_refresh import turn


def due(projection, stack, steps, number=0, views=1, layer=0):
    """For each step the matrices that are due."""
    view = MatrixView("w", (*stack, 4, 4), "s" * len(stack) + "mn", number)
    found = []
    for step in range(steps):
        now = turn(projection, view, views, jnp.int32(step), layer)
        first, stride = int(now.first), int(now.stride)
        found.append([first + k * stride for k in range(int(now.several))])
    return found


def test_all_at_once():
    now = due(Projection(2, refresh_interval=3, stagger=False), (2, 2), 7)
    assert now == [[0, 1, 2, 3], [], [], [0, 1, 2, 3], [], [], [0, 1, 2, 3]]


@pytest.mark.parametrize("matrices", [1, 3, 7, 16])
def test_in_turns_everybody_is_due_once_a_gap(matrices):
    gap = 7
    now = due(Projection(2, refresh_interval=gap), (matrices,), 3 * gap + 1)
    assert now[0] == list(range(matrices))
    for start in range(1, 2 * gap):
        once = sorted(j for step in now[start : start + gap] for j in step)
        assert once == list(range(matrices))
    assert max(map(len, now[1:])) == -(-matrices // gap)


def test_parameters_are_spread_over_the_gap():
    gap, views = 20, 5
    starts = [
        next(
            t
            for t, j in enumerate(due(Projection(2, refresh_interval=gap), (), gap + 1, i, views))
            if t and j
        )
        for i in range(views)
    ]
    assert sorted(t % gap for t in starts) == [0, 4, 8, 12, 16]


def test_a_layer_by_itself_has_the_turn_it_has_in_the_stack():
    """3 layers of 2 experts: matrix e of layer l is number 2 l + e."""
    projection, steps = Projection(2, refresh_interval=4), 9
    whole = due(projection, (3, 2), steps)
    for layer in range(3):
        alone = due(projection, (2,), steps, layer=layer)
        assert alone == [[j - 2 * layer for j in now if j // 2 == layer] for now in whole]


L, M, N, R = 4, 6, 8, 2


def params(stack):
    return {"w": jnp.ones((*stack, M, N))}


def gradient(stack, seed=0):
    return {"w": jax.random.normal(jax.random.key(seed), (*stack, M, N))}


def test_only_those_that_are_due_change():
    tx = galore(optax.adam(0.1), R, refresh_interval=L)
    update, state = jax.jit(tx.update), jax.jit(tx.init)(params((L,)))
    for step in range(2 * L + 1):
        before = state
        _, state = update(gradient((L,), step), state)
        change = state.projectors["w"].left - before.projectors["w"].left
        changed = np.flatnonzero(jnp.max(jnp.abs(change), axis=(1, 2)))
        assert list(changed) == (list(range(L)) if step == 0 else [step % L])


def test_no_svd_between_refreshes(monkeypatch):
    """Counted while it runs, and seen in the program: the call is inside of a branch."""
    calls = []

    def counted(gradient, rank):
        jax.debug.callback(lambda: calls.append(1))
        return svd_basis(gradient, rank)

    monkeypatch.setattr(projector_refresh, "svd_basis", counted)
    tx = galore(optax.adam(0.1), R, refresh_interval=3, refresh="svd", stagger=False)
    update, state = jax.jit(tx.update), tx.init(params((L,)))
    seen = []
    for step in range(5):
        _, state = update(gradient((L,), step), state)
        jax.effects_barrier()
        seen.append(len(calls))
    assert seen == [L, L, L, 2 * L, 2 * L]


def program(stack, **options):
    tx = galore(optax.adam(0.1), R, **options)
    state = jax.eval_shape(tx.init, params(stack))
    compiled = jax.jit(tx.update).lower(gradient(stack), state, params(stack)).compile()
    return compiled.as_text() or ""


@pytest.mark.usefixtures("optimized")
def test_the_program_does_not_grow_with_the_stack():
    lines = [len(program(stack).splitlines()) for stack in ((2,), (24,))]
    assert abs(lines[0] - lines[1]) <= 0.02 * lines[0]


@pytest.mark.usefixtures("optimized")
def test_the_decomposition_is_in_a_branch():
    text = program((L,), refresh="svd")
    bodies = re.split(r"\n(?=(?:ENTRY )?%?[\w.-]+ \()", text)
    holding = [body for body in bodies if "gesdd" in body or "gesvd" in body]
    assert holding and not any(body.startswith("ENTRY") for body in holding)
    assert "conditional(" in text
