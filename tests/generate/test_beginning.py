"""A beginning that all prompts share is read once per member, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.generate.prompts import shared_tokens
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.rope import DynamicScaling, LongRopeScaling
from springroll.models.rwkv7.config import rwkv7
from springroll.models.rwkv7.model import RWKV7
from tests.compiling import normal, quick_jit
from tests.generate.writing import MEMBERS, PROMPTS, generator, running, same, tiny
from tests.models.test_decoder_golden import DENSE, EXPERTS, FAMILIES, by_formula

TEMPLATE = [140 + i for i in range(21)]
SHARED = [[*TEMPLATE, *prompt] for prompt in PROMPTS]  # 21 tokens, of which 16 are read once
GEMMA = DecoderConfig(
    **DENSE,
    norm_plus_one=True,
    norms_after=True,
    embed_scale=True,
    logit_cap=30.0,
    score_cap=50.0,
    window=6,
    local_theta=50.0,
)
LENGTHS = (5, 1, 7)


def of_rwkv(chunk):
    model = RWKV7(rwkv7(24, 2, (3, 5, 6, 7), vocab=48, ffn=44, head_dim=12), chunk=chunk)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [0.3 + 0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return model, tree.unflatten(drawn)


def of_decoder(config):
    model = decoder(config)
    params = model.init(jax.random.key(0))
    return model, jax.tree.map(lambda w: 8 * w if w.ndim > 1 else w, params)


MODELS = {
    "gpt_oss": lambda: (decoder(FAMILIES["gpt_oss"]), by_formula("gpt_oss")),
    "gemma": lambda: of_decoder(GEMMA),
    "experts, chosen": lambda: of_decoder(DecoderConfig(**EXPERTS)),
    "rwkv": lambda: of_rwkv(4),
    "rwkv by token": lambda: of_rwkv(0),
}
SLOW = ("rwkv by token", "experts, chosen", "gemma")
NAMES = [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in MODELS]


@pytest.mark.parametrize("name", NAMES)
def test_reading_on_gives_what_reading_whole_gives(name, monkeypatch):
    model, params = MODELS[name]()
    if name == "experts, chosen":
        monkeypatch.setitem(decoder.__globals__, "chosen_are_less", lambda config, tokens: True)
    known, width = 8, max(LENGTHS) + 1
    texts = np.random.default_rng(1).integers(1, 48, (len(LENGTHS), known + width))
    texts[:, :known] = texts[0, :known]
    whole = np.full((len(LENGTHS), known + width), 7, np.int32)
    for text, row, n in zip(texts, whole, LENGTHS, strict=True):
        row[width - n :] = text[: known + n]
    read, lengths = quick_jit(model.read), jnp.asarray(LENGTHS, jnp.int32)
    logits, entries = read(params, jnp.asarray(whole), known + lengths)
    _, before = read(params, jnp.asarray(texts[:1, :known], jnp.int32), jnp.array([known]))
    before = jax.tree.map(lambda x: jnp.repeat(x, len(LENGTHS), axis=1), before)
    rest = np.full((len(LENGTHS), width), 9, np.int32)  # what stands in the padding is nothing
    for row, text, n in zip(rest, texts, LENGTHS, strict=True):
        row[width - n :] = text[known : known + n]
    got, after = read(params, jnp.asarray(rest), lengths, before)
    np.testing.assert_allclose(got, logits, atol=1e-5 * float(jnp.abs(logits).max()))
    for ours, expected in zip(*map(jax.tree.leaves, (after, entries)), strict=True):
        assert ours.shape == expected.shape
        if "rwkv" not in name:  # of a decoder, where there are tokens
            there = np.arange(-known - width, 0) >= -known - np.array(LENGTHS)[:, None]
            there = there[None, :, None, :, None]
            ours, expected = np.where(there, ours, 0), np.where(there, expected, 0)
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(ours, expected, atol=1e-5 * scale)


def both(name, prompts=SHARED, count=None, **options):
    """What a run writes, with as many shared tokens as asked and with none."""
    _, params, members = tiny(name)
    members = members if options.pop("population", True) else None
    call = {key: options.pop(key) for key in ("unperturbed", "copies", "seed") if key in options}
    run = lambda n: generator(name, shared_prompt_tokens=n, **options).run(
        params, members, prompts, **call
    )
    return run(count), run(0)


@pytest.mark.slow
def test_members_write_what_they_write_after_reading_whole():
    shared, whole = both("llama-tiny", unperturbed=1)
    same(shared, whole)
    assert whole.prompt_tokens > 1.5 * shared.prompt_tokens >= 1.5 * (MEMBERS + 1) * 16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-tiny", "moe-tiny"])
def test_refilled_rows_write_what_they_write_after_reading_whole(name):
    same(*both(name, unperturbed=1, rows=4, segment=4))
    same(*both(name, unperturbed=1, rows=4, segment=4, per_group=1))


@pytest.mark.slow
def test_the_plain_model_and_drawn_tokens_are_the_same():
    for options in ({"population": False, "copies": 3}, {"temperature": 1.0, "seed": 4}):
        shared, whole = both("llama-tiny", **options)
        same(shared, whole)
        assert shared.prompt_tokens < whole.prompt_tokens


@pytest.mark.slow
def test_members_of_rwkv_write_what_they_write_after_reading_whole():
    import springroll as sr
    from springroll.generate.generator import Generator

    model, params = of_rwkv(4)
    es = sr.eggroll(pop_size=MEMBERS, sigma=0.02, rank=1)
    members = es.ask(es.init(jax.random.key(1), params))
    prompts = [[token % 48 for token in prompt] for prompt in SHARED]
    wrote = [
        Generator(
            model=model, end=frozenset({0}), max_tokens=6, rows=rows, shared_prompt_tokens=n
        ).run(params, members, prompts, unperturbed=2)
        for rows, n in ((None, 0), (None, None), (5, None))
    ]
    same(wrote[0], wrote[1])
    same(wrote[0], wrote[2])
    assert wrote[1].prompt_tokens < wrote[0].prompt_tokens


def test_a_beginning_is_read_once_for_all_rows_of_a_member_that_wait():
    """Two groups of two rows: each pair's prompts pass through one of them."""
    _, params, members = tiny()
    run = running(generator(rows=4), params, members, SHARED)
    beginnings = run.beginnings
    assert beginnings is not None and beginnings._count == 4
    calls = []
    beginnings._read = lambda reading: calls.append(reading) or 0
    of_pair = [np.flatnonzero(run.jobs.pair == pair) for pair in (0, 1)]
    for jobs in (of_pair[0][:2], of_pair[1][:2], of_pair[0][2:], of_pair[1]):
        beginnings.read(jobs, np.array([0, 1]))
    beginnings.read(of_pair[0], np.array([0, -1]))
    beginnings.read(of_pair[1], np.array([0, 1]))  # again: no group held it any more
    assert [each.pair.tolist() for each in calls] == [[0], [1], [1]]
    assert [sorted(each.row.tolist()) for each in calls] == [[0, 1], [2, 3], [2, 3]]


@pytest.mark.parametrize(
    "prompts, expected",
    [
        (SHARED, 16),
        ([SHARED[0], SHARED[0]], 0),  # one prompt: it is read once as it is
        (SHARED[:1], 0),
        (PROMPTS, 0),
        ([[1] * 8 + [2], [1] * 8 + [3]], 8),
        ([[1] * 8, [1] * 8 + [3]], 0),  # a token is left to read
        ([[1] * 9, [1] * 9 + [3]], 8),
        ([[1] * 7 + [2], [1] * 7 + [3]], 0),
        ([[]], 0),
        ([[], [1]], 0),
        ([], 0),
    ],
)
def test_shared_tokens_leave_each_prompt_one(prompts, expected):
    assert shared_tokens(prompts) == expected == shared_tokens(prompts, 1000)
    assert shared_tokens(prompts, 8) == min(8, expected)
    assert shared_tokens(prompts, 7) == 0 == shared_tokens(prompts, 0)
    assert shared_tokens(SHARED, 19) == 19


def test_models_that_cannot_read_on_read_prompts_whole():
    config = DecoderConfig(**DENSE)
    scaled = lambda scaling: decoder(dataclasses.replace(config, rope_scaling=scaling))
    assert decoder(config).reads_on(10**6)
    ones = (1.0,) * 4
    for scaling in (
        DynamicScaling(factor=2.0, original_length=64),
        LongRopeScaling(short=ones, long=ones, factor=2.0, original_length=64),
    ):
        assert scaled(scaling).reads_on(64) and not scaled(scaling).reads_on(65)
