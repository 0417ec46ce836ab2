"""What a decoder remembers: ring, padding and single steps give the logits of the whole text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models import kv_cache
from springroll.models.decoder import decoder
from springroll.models.kv_cache import Cache
from tests.compiling import quick_jit
from tests.models.test_decoder_golden import FAMILIES, by_formula

LENGTHS, TIME, SLOTS, STEPS = (5, 3, 8), 8, 14, 5
ROWS = (3, 0, 1)  # where the three texts are kept, of five rows


@functools.cache
def texts():
    return np.random.default_rng(1).integers(0, 48, (3, TIME + STEPS)).astype(np.int32)


def padded(junk):
    tokens = np.full((3, TIME), junk, np.int32)
    for i, n in enumerate(LENGTHS):
        tokens[i, TIME - n :] = texts()[i, :n]
    return jnp.asarray(tokens)


def with_block(memory, steps):
    """The memory with the steps of a block apart, as on a CPU with bfloat16."""
    shape = lambda x: (*x.shape[:3], steps, x.shape[4])
    cut = lambda x: jnp.full(shape(x), jnp.nan, jnp.float32)
    return memory._replace(block=jax.tree.map(cut, memory.ring) if steps else ())


# Windows, sinks and biases are gpt-oss's; experts, norms of heads and their renormalising others'.
@pytest.mark.parametrize(
    "family, chosen, block",
    [
        ("qwen3_moe", False, 0),
        pytest.param("gpt_oss", False, 0, marks=pytest.mark.slow),
        ("gpt_oss", False, 7),  # the first step is its fifth, and it is full after three
        ("qwen3_moe", True, 2),
        pytest.param("gpt_oss", True, 0, marks=pytest.mark.slow),
    ],
)
def test_reading_and_stepping_give_the_logits_of_whole_texts(family, chosen, block, monkeypatch):
    monkeypatch.setitem(decoder.__globals__, "chosen_are_less", lambda config, tokens: chosen)
    model, params = decoder(FAMILIES[family]), by_formula(family)
    whole = quick_jit(model.apply)(params, jnp.asarray(texts()))
    clock = jnp.int32(SLOTS - 3)  # the ring turns over while the rows are written
    logits, found = quick_jit(model.read)(params, padded(7), jnp.asarray(LENGTHS))
    empty = with_block(model.memory(5, SLOTS), block)
    memory = quick_jit(model.admit)(empty, found, jnp.asarray(ROWS), clock)
    seen = jnp.zeros(5, jnp.int32).at[jnp.asarray(ROWS)].set(jnp.asarray(LENGTHS))
    got, step, keep = [logits], quick_jit(model.step), quick_jit(model.keep)
    for i in range(STEPS):
        token = np.zeros(5, np.int32)
        token[list(ROWS)] = [text[n + i] for text, n in zip(texts(), LENGTHS, strict=True)]
        logits, found = step(params, jnp.asarray(token), memory, seen, clock)
        memory = keep(memory, found, clock)
        seen, clock = seen + 1, (clock + 1) % SLOTS
        got.append(logits[jnp.asarray(ROWS)])
    for i, (text, n) in enumerate(zip(whole, LENGTHS, strict=True)):
        ours = np.stack([logits[i] for logits in got])
        np.testing.assert_allclose(ours, text[n - 1 : n + STEPS], atol=5e-6)


def test_padding_changes_nothing():
    model, params = decoder(FAMILIES["llama3"]), by_formula("llama3")
    read = quick_jit(model.read)
    lengths = jnp.asarray(LENGTHS)
    (a, found_a), (b, found_b) = (read(params, padded(junk), lengths) for junk in (7, 40))
    np.testing.assert_array_equal(a, b)
    for i, n in enumerate(LENGTHS):
        one, other = (np.asarray(f.k)[:, i, :, TIME - n :] for f in (found_a, found_b))
        np.testing.assert_array_equal(one, other)


def test_layers_in_a_list_are_those_of_the_stack():
    model, params = decoder(FAMILIES["llama3"]), by_formula("llama3")
    apart = params | {
        "layers": [jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(2)]
    }
    memory, token, seen = model.memory(2, 4), jnp.array([3, 4]), jnp.zeros(2, jnp.int32)
    step = quick_jit(model.step)
    one, other = (step(p, token, memory, seen, jnp.int32(0))[0] for p in (params, apart))
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "slots, steps, clock, expected",
    [
        (5, 0, 2, [2, 1, 5, 4, 3]),
        (6, 3, 5, [5, 4, 3, 8, 7, 6, 2, 1, 0]),  # slots 3 and 4 are in the block, not in the ring
        (6, 3, 3, [3, 2, 1, 6, 5, 4, 0, -1, -2]),
    ],
)
def test_ages_count_steps_back_from_the_clock(slots, steps, clock, expected):
    memory = with_block(kv_cache.empty(1, 1, 1, slots, 1, jnp.float32), steps)
    np.testing.assert_array_equal(kv_cache.ages(memory, jnp.int32(clock)), expected)


def test_a_cpu_keeps_steps_of_bfloat16_apart():
    memory = kv_cache.empty(1, 1, 1, 12, 1, jnp.bfloat16)
    assert memory.steps == 4
    assert memory.block[0].k.dtype == jnp.float32
    assert not kv_cache.empty(1, 1, 1, 12, 1, jnp.float32).block


@pytest.mark.parametrize("window, expected", [(None, [1, 1, 0, 0, 1]), (3, [1, 1, 0, 0, 0])])
def test_a_row_sees_its_youngest_slots(window, expected):
    limit = None if window is None else jnp.int32(window)
    see = kv_cache.visible(jnp.array([2, 1, 5, 4, 3]), jnp.array([3, 0]), limit)
    np.testing.assert_array_equal(see, [expected, [0] * 5])


def test_admission_puts_prompts_behind_the_clock_and_drops_rows_out_of_range():
    new = jnp.arange(2 * 3 * 1 * 2 * 1, dtype=jnp.float32).reshape(2, 3, 1, 2, 1) + 1
    layers = kv_cache.empty(2, 2, 1, 4, 1, jnp.float32)
    admit = quick_jit(kv_cache.admit)
    got = admit(layers, Cache(new, -new), jnp.array([1, 2, 0]), jnp.int32(1))
    for i, layer in enumerate(got.ring):
        expected = np.zeros((2, 4))
        expected[1, [3, 0]], expected[0, [3, 0]] = new[i, 0, 0, :, 0], new[i, 2, 0, :, 0]
        np.testing.assert_array_equal(layer.k[0, :, 0, :, 0], expected)
        np.testing.assert_array_equal(layer.v, -layer.k)
