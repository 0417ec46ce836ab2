"""What members write is what their formed weights write, however the rows are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.generate import programs
from springroll.generate.forward import read
from springroll.generate.generator import Generator
from tests.generate.writing import (
    END,
    MEMBERS,
    MOST,
    PROMPTS,
    at_once,
    formed,
    generator,
    running,
    same,
    tiny,
)
from tests.models.test_hf import GOLDEN, by_name


def slowly(model, params, prompt):
    """The likeliest tokens by whole forwards of the text so far."""
    text, apply = list(prompt), jax.jit(model.apply)
    for _ in range(MOST):
        padded = np.zeros((1, 20), np.int32)
        padded[0, : len(text)] = text
        text.append(int(jnp.argmax(apply(params, jnp.asarray(padded))[0, len(text) - 1])))
        if text[-1] in END:
            break
    return text[len(prompt) :]


@pytest.mark.parametrize("name", ["llama-tiny", pytest.param("moe-tiny", marks=pytest.mark.slow)])
def test_members_write_what_their_formed_weights_write(name):
    got, plain = at_once(name), generator(name)
    for member, weights in enumerate(formed(name)):
        one = plain.run(weights, None, PROMPTS)
        np.testing.assert_array_equal(one.tokens[0], got.tokens[member])
    assert 0 < got.finished.sum() < got.finished.size  # both kinds are there


def test_what_is_written_is_the_likeliest_text():
    got, text = at_once(), slowly(tiny()[0], formed()[1], PROMPTS[0])
    n = int(got.lengths[1, 0]) + bool(got.finished[1, 0])
    assert text == got.tokens[1, 0, :n].tolist()


def test_live_rows_were_moved_together():
    assert at_once().slot_steps < at_once().steps * MEMBERS * len(PROMPTS)


@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny"])
def test_logits_of_members_are_those_of_formed_weights(name):
    model, params, members = tiny(name)
    signs = jnp.asarray([[1.0, -1.0]] * (MEMBERS // 2))
    tokens = jnp.tile(jnp.asarray(PROMPTS[0], jnp.int32), (*signs.shape, 1))
    lengths = jnp.full(signs.shape, 5, jnp.int32)
    got, _ = jax.jit(read, static_argnums=0)(
        model, members.groups(), params, signs, tokens, lengths
    )
    whole = jax.jit(model.read)
    for logits, weights in zip(got, formed(name), strict=False):
        expected, _ = whole(weights, tokens[0, :1], lengths[0, :1])
        np.testing.assert_allclose(logits, expected[0], atol=1e-5)


def test_refilled_rows_write_what_they_write_at_once():
    _, params, members = tiny()
    got = generator(rows=4, segment=4).run(params, members, PROMPTS, unperturbed=1)
    plain = generator().run(params, None, PROMPTS, copies=2)
    expected = np.concatenate([at_once().tokens, plain.tokens[:1]])
    np.testing.assert_array_equal(got.tokens, expected)
    np.testing.assert_array_equal(plain.tokens[0], plain.tokens[1])
    assert got.steps > at_once().steps


def test_a_budget_of_bytes_is_a_number_of_rows():
    _, params, members = tiny()
    row = 2 * 2 * 32 * 32 * 4  # keys and values, layers, 8 + 10 tokens rounded up, width, float32
    tight = generator(memory_bytes=5 * row + 1)
    run = running(tight, params, members, PROMPTS, unperturbed=1)
    assert run.slots.job.shape == (2, 2)  # groups of two rows
    with pytest.raises(InputError, match="one row of 32 tokens needs"):
        generator(memory_bytes=row - 1).run(params, members, PROMPTS)


def test_texts_that_no_memory_holds_are_refused_before_it_is_taken():
    _, params, _ = tiny()
    with pytest.raises(InputError, match=r"keeps of 1 texts of 1,073,741,824 tokens would take"):
        generator(max_tokens=10**9).run(params, None, PROMPTS[:1])


@pytest.mark.slow
def test_drawn_tokens_depend_on_seed_member_and_prompt_alone():
    _, params, members = tiny()
    drawn = {"temperature": 1.0, "log_probabilities": True}
    one = generator(**drawn, segment=4).run(params, members, PROMPTS, seed=3)
    few_rows = generator(**drawn, rows=4, segment=4)
    other = few_rows.run(params, members, PROMPTS, seed=3)
    same(one, other)
    assert one.log_probabilities is not None and other.log_probabilities is not None
    np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-4)
    again = few_rows.run(params, members, PROMPTS, seed=4)
    assert (again.tokens != one.tokens).any()


def test_log_probabilities_are_those_of_the_whole_text():
    model, params, _ = tiny()
    got = generator(temperature=0.7, log_probabilities=True).run(params, None, PROMPTS[:1], seed=1)
    assert got.log_probabilities is not None
    n = int(got.lengths[0, 0] + got.finished[0, 0])
    text = np.r_[PROMPTS[0], got.tokens[0, 0, :n]].astype(np.int32)
    logits = jax.jit(model.apply)(params, jnp.asarray(text)[None])[0, len(PROMPTS[0]) - 1 : -1]
    expected = jax.nn.log_softmax(logits / 0.7)[jnp.arange(n), text[len(PROMPTS[0]) :]]
    np.testing.assert_allclose(got.log_probabilities[0, 0, :n], expected, atol=1e-4)
    assert not got.log_probabilities[0, 0, n:].any()


def test_short_floats_decode_with_float32_logits():
    _, params, members = tiny()
    short = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    writer = generator(max_tokens=2, log_probabilities=True)
    run = running(writer, short, members, PROMPTS[:1])
    assert {x.dtype for x in jax.tree.leaves(run.memory.ring)} == {jnp.dtype(jnp.bfloat16)}
    got = run.finish().generated()
    assert got.log_probabilities is not None and got.log_probabilities.dtype == np.float32
    assert np.isfinite(got.log_probabilities).all() and (got.log_probabilities <= 0).all()


def test_lengths_and_ends_describe_the_tokens():
    got = at_once()
    assert got.tokens.shape == (MEMBERS, len(PROMPTS), MOST)
    ended = np.isin(got.tokens, list(END))
    for text, is_end, n, finished in zip(
        got.tokens.reshape(-1, MOST),
        ended.reshape(-1, MOST),
        got.lengths.reshape(-1),
        got.finished.reshape(-1),
        strict=True,
    ):
        assert not is_end[:n].any()
        assert finished == (n < MOST)
        assert not finished or is_end[n]
        assert not text[n + finished :].any()


QUICK = ("qwen3_moe", "gemma3")
SLOW = (
    "llama",
    "llama3",
    "qwen2",
    "qwen3",
    "linear",
    "yarn",
    "mistral",
    "mixtral",
    "phi3",
    "smollm3",
)
SLOW += ("smollm3_window", "gemma2", "gpt_oss")


SLOWLY = [pytest.param(family, marks=pytest.mark.slow) for family in SLOW]


@pytest.mark.parametrize("family", [*QUICK, *SLOWLY])
def test_ragged_prompts_give_the_tokens_of_transformers(family, tmp_path):
    golden = np.load(GOLDEN.with_name("generation.npz"))
    prompts, tokens = golden[f"{family}/prompts"], golden[f"{family}/tokens"]
    asked = [
        row[len(row) - n :].tolist() for row, n in zip(prompts, golden["lengths"], strict=True)
    ]
    model, params = by_name(family, tmp_path)
    writer = Generator(model=model, end=frozenset(), max_tokens=tokens.shape[1])
    got = writer.run(params, None, asked)
    np.testing.assert_array_equal(got.tokens[0], tokens)
    assert not got.finished.any()


def test_the_memory_is_written_in_place_and_weights_meet_all_rows_at_once():
    model, params, members = tiny()
    run = running(generator(), params, members, PROMPTS, unperturbed=1)
    run.slots.fill(run.waiting)
    run._bind()
    groups, rows = run.slots.job.shape[0], run.slots.job.size
    lowered = programs.write_on.lower(  # type: ignore[attr-defined]
        run.program, 4, run.writer, jnp.int32(0), run.clock, run.memory, run.rows
    )
    text = lowered.compile().as_text() or ""
    ring = f"f32[1,{rows},2,32,16]"
    assert f"{ring}{{4,3,2,1,0}} dynamic-update-slice" in text
    body = [line for line in text.splitlines() if f"= {ring}" in line]
    assert not [line for line in body if " copy(" in line]
    config = model.config
    assert f"[{groups},{rows // groups},{config.ffn},{config.hidden}]" not in text


def test_what_programs_hand_on_is_bound_to_its_device_from_the_beginning():
    """A program is compiled once for arrays that are bound, and once more for those that are not;
    what it returns is bound where the weights are."""
    _, params, members = tiny()
    run = running(generator(), params, members, PROMPTS)
    arrays = jax.tree.leaves((run.memory, run.rows, run.clock, run.source, run.writer))
    assert all(isinstance(x, jax.Array) and x.committed for x in arrays)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"rows": 2, "memory_bytes": 3}, "both rows and memory_bytes"),
    ],
)
def test_wrong_options_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        generator(**options)


@pytest.mark.parametrize(
    "prompts, message", [([], "no prompt is given"), ([[1], []], "prompt 1 has no token")]
)
def test_wrong_prompts_are_one_line(prompts, message):
    _, params, members = tiny()
    with pytest.raises(InputError, match=message):
        generator().run(params, members, prompts)
