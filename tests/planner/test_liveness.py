"""Temporary memory counted over a jaxpr: small programs by hand, a layer beside XLA's for a GPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from springroll import compat
from springroll.models.attention import block_size
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.planner.liveness import beside_bytes, temporary_bytes
from springroll.planner.working_set import INDEX, arguments, expert_working_set, working_set

SIDE = 64
ONE = SIDE * SIDE * 4
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def counted(fn, *args):
    return temporary_bytes(jax.make_jaxpr(fn)(*(args or (X,))))


def summed(x):
    return lax.scan(lambda total, row: (total + jnp.outer(row, row), None), x, x)[0]


@pytest.mark.parametrize(
    ("fn", "arrays"),
    [
        (lambda x: jnp.sin(x) + x, 0),  # fused into the result
        (lambda x: x @ x, 0),
        (lambda x: (x @ x) @ x, 1),
        (lambda x: jnp.sin(x @ x) @ x, 1),  # written over what it is made of
        (lambda x: jnp.sin(x) @ jnp.cos(x), 2),  # products read whole arrays
        (lambda x: jnp.sum(jnp.sin(x) * x), 0),  # a sum reads fused ones
        (lambda x: (x @ x).reshape(-1) @ x.reshape(-1), 1),  # the same bytes
        (lambda x: jax.jit(lambda y: y @ y)(x @ x) @ x, 1),  # calls are part of the program
        (summed, 0),  # the carry is the result, and what is added is fused
        (lambda x: (y := x @ x, y @ x), 0),  # a result serves as an operand
    ],
)
def test_arrays_that_a_program_holds_beside_arguments_and_results(fn, arrays):
    assert counted(fn) == pytest.approx(arrays * ONE, abs=ONE / SIDE)


@pytest.mark.parametrize(
    ("fn", "donated", "arrays"),
    [
        (lambda x, y: (x @ y) @ y, False, 2),  # the result too
        (lambda x, y: x.at[0].set(y[0] * 2), False, 1),
        (lambda x, y: x.at[0].set(y[0] * 2), True, 0),  # written over the argument
        (lambda x, y: x.at[0].set(((y @ y) @ y)[0]), True, 2),
    ],
)
def test_results_may_be_written_over_arguments_that_are_given_away(fn, donated, arrays):
    found = beside_bytes(jax.make_jaxpr(fn)(X, X), (donated, False))
    assert found == pytest.approx(arrays * ONE, abs=2 * ONE / SIDE)


def test_a_product_is_stored_as_it_is_rounded():
    short = jax.ShapeDtypeStruct(X.shape, jnp.bfloat16)

    def rounded(x):
        y = jnp.einsum("ij,jk->ik", x, x, preferred_element_type=jnp.float32)
        return jnp.einsum("ij,jk->ik", y.astype(x.dtype), x)

    assert counted(rounded, short) == ONE / 2


def test_branches_and_loops_without_an_end():
    def loop(x):
        return lax.while_loop(lambda y: jnp.sum(y) < 1, lambda y: jnp.sin(y @ x) @ x, x)

    assert ONE <= counted(loop) <= 2 * ONE
    branches = lambda x: lax.cond(jnp.sum(x) > 0, lambda: (x @ x) @ x, lambda: x)
    assert counted(branches) == pytest.approx(ONE, abs=64)


# MiB of the backward pass of a layer in bfloat16, as XLA compiles it for an H200 (jaxlib 0.10.2,
# ahead of time, without its autotuning and without cuDNN's attention; 2026-11-30).
SLOW = pytest.mark.slow
COMPILED = {
    ("llama-1b", 2, 512): 172.6,
    ("qwen2.5-1.5b", 4, 1024): 360.7,
    ("qwen3-8b", 4, 1024): 442.8,
    ("llama-7b", 1, 4096): 351.2,
    ("olmoe-1b-7b", 4, 1024): 751.7,
    ("gpt-oss-20b", 2, 1024): 471.4,
    ("llama3.1-8b", 1, 131072): 9666.0,
}


QUICK = ("qwen3-8b", "llama3.1-8b")
SLOWLY = [each if each[0] in QUICK else pytest.param(*each, marks=SLOW) for each in COMPILED]


@pytest.mark.parametrize(("name", "rows", "sequence"), SLOWLY)
def test_a_layer_takes_what_the_compiler_for_a_gpu_gives_it(name, rows, sequence):
    found = working_set(CONFIGS[name], rows, sequence, "bfloat16", platform="gpu")
    assert found.layer / 2**20 == pytest.approx(COMPILED[name, rows, sequence], rel=0.12)


def test_experts_by_themselves_take_less():
    config = CONFIGS["moe-4m"]
    whole = working_set(
        config, 64, 32, "bfloat16", platform="gpu"
    )  # more for experts than attention
    few = expert_working_set(config, 64, 32, "bfloat16", 4, platform="gpu")
    assert 0 < few.layer < whole.layer / 2 and 0 < few.head <= whole.head


def test_programs_for_another_platform_are_traced_apart():
    """What was traced for a card does not become what this process runs, nor the reverse."""
    assert compat.platform() == "cpu"
    here = block_size(32, 2048, 2048)
    with compat.tracing_for("gpu"):
        assert compat.platform() == "gpu"
        assert block_size(32, 2048, 2048) != here
    assert block_size(32, 2048, 2048, "gpu") != block_size(32, 2048, 2048) == here
    chosen = []

    @jax.checkpoint
    def inner(x):
        chosen.append(compat.platform())
        return x * 2

    trace = lambda: jax.make_jaxpr(lambda x: inner(x))(X)
    trace()
    with compat.tracing_for("gpu"):
        trace()
    trace()
    assert chosen == ["cpu", "gpu"]


@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny"])
def test_statistics_of_a_layer_are_those_that_it_gives(name):
    config = CONFIGS[name]
    args = arguments(config, 2, 8, "bfloat16")
    assert args.stats == jax.eval_shape(decoder(config).block, args.layer, args.x, INDEX)[1]
