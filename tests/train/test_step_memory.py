"""The memory table: bytes from the compiler, refusals."""

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from springroll.errors import InputError
from springroll.train.step_memory import Memory, refuse_too_big, step_memory
from springroll.trees import tree_bytes

MIB = 1 << 20


def step(state, batch):
    weights, momentum = state
    grads = jax.grad(lambda w: jnp.sum(jnp.tanh(batch @ w) ** 2))(weights)
    momentum = jnp.float32(0.9) * momentum + grads
    return (weights - jnp.float32(0.1) * momentum, momentum), jnp.sum(grads)


def planned(donate):
    square = jax.ShapeDtypeStruct((512, 512), jnp.float32)
    batch = jax.ShapeDtypeStruct((64, 512), jnp.float32)
    jitted = jax.jit(step, donate_argnums=(0,) if donate else ())
    compiled = jitted.lower((square, square), batch).compile()
    return step_memory(compiled, weights=MIB, state=MIB, gradients=MIB)


def test_bytes_are_the_compilers():
    found = planned(donate=True)
    assert found.weights == found.state == MIB and found.batch == 64 * 512 * 4
    assert found.gradients <= MIB
    # Donated, new weights and momentum take the place of the old ones.
    assert 2 * MIB + found.batch <= found.peak < 4 * MIB + found.batch
    assert planned(donate=False).peak > found.peak


def test_the_table_names_all_kinds():
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(Memory(3 * MIB, 6 * MIB, 0, 3 * MIB, MIB, 13 * MIB).table())
    text = console.export_text()
    for word in ("weights", "gradients", "state", "activations", "peak", "13 MiB"):
        assert word in text


def test_the_first_alternative_that_fits_is_named_and_the_rest_not_looked_at():
    job = Memory(0, 0, 0, 0, 0, 100 * MIB)

    def alternatives():
        yield "--remat", 60 * MIB
        yield "--optimizer lowgrad", 30 * MIB
        raise AssertionError("looked further than needed")

    with pytest.raises(InputError, match=r"needs 100 MiB, 50 MiB are .*; --optimizer lowgrad nee"):
        refuse_too_big(job, 50 * MIB, alternatives())
    with pytest.raises(InputError, match="take a smaller --model"):
        refuse_too_big(job, 50 * MIB, [("--remat", 60 * MIB)])


def test_what_fits_or_is_unknown_is_not_refused():
    job = Memory(0, 0, 0, 0, 0, 100)

    def never():
        raise AssertionError("nothing to look for")
        yield

    refuse_too_big(job, 100, never())
    refuse_too_big(job, None, never())


def test_bytes_of_a_tree():
    tree = {"a": jnp.zeros((3, 5), jnp.bfloat16), "b": jax.ShapeDtypeStruct((7,), jnp.int8)}
    assert tree_bytes(tree) == 37
