"""Whole models with int8 weights: they read, write and are fine-tuned as those they stand for."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.evolve.members import each_member
from springroll.finetune.config import FinetuneConfig
from springroll.finetune.evolution import master_of
from springroll.finetune.job import task_of
from springroll.finetune.setup import prepare
from springroll.generate.generator import Generator
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from springroll.models.rwkv7.config import rwkv7, shapes
from springroll.models.rwkv7.model import RWKV7
from springroll.quant.int8_weights import dequantize_weights, is_int8, quantize_weights, real
from springroll.tokens.byte_tokenizer import write_byte_tokenizer
from tests.evolve.dense_population import all_params

PROMPT = [200, 3, 77, 120, 9]
jitted = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def members_of(params, size=4, sigma=0.05):
    """Members that differ in the int8 weights; few draws of noise are quick to compile."""
    es = sr.eggroll(pop_size=size, sigma=sigma, roles={"*": "frozen", "*/values": "snm"})
    return es.ask(es.init(jax.random.key(1), params))


def formed(params, members):
    """The float weights of every member, formed."""
    one = lambda x: replace(x, values=real(x)) if is_int8(x) else x
    whole = lambda x: x.values if is_int8(x) else jnp.asarray(x)
    in_place = jax.tree.map(one, params, is_leaf=is_int8)
    return [
        jax.tree.map(whole, weights, is_leaf=is_int8) for weights in all_params(in_place, members)
    ]


@pytest.mark.slow
def test_a_decoder_writes_what_its_formed_members_write():
    model = decoder(CONFIGS["llama-tiny"])
    params = jax.tree.map(lambda w: 4 * w if w.ndim > 1 else w, model.init(jax.random.key(0)))
    params = quantize_weights(params)
    members = members_of(params)
    generator = Generator(model=model, end=frozenset(), max_tokens=8)
    got = generator.run(params, members, [PROMPT], unperturbed=1).tokens[:, 0]
    apply = jitted(lambda params, tokens: jnp.argmax(model.apply(params, tokens), axis=-1))
    for tokens, weights in zip(
        got, [*formed(params, members), dequantize_weights(params)], strict=True
    ):
        likeliest = apply(weights, jnp.asarray([*PROMPT, *tokens], jnp.int32)[None])
        np.testing.assert_array_equal(likeliest[0, len(PROMPT) - 1 : -1], tokens)
    assert len({tuple(tokens) for tokens in got.tolist()}) > 2


@pytest.mark.slow  # the decoder above and `models/test_rwkv7_members.py` check the same halves
def test_an_rwkv7_reads_as_its_formed_members_do():
    model = RWKV7(rwkv7(24, 2, (3, 5, 6, 7), vocab=40, ffn=44, head_dim=12), chunk=4)
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.normal(0.3, 0.3, shape), jnp.float32)
    params = jax.tree.map(draw, shapes(model.config), is_leaf=lambda x: isinstance(x, tuple))
    params = quantize_weights(params)
    tokens = jnp.array([[3, 9, 1, 39, 0, 7]], jnp.int32)
    members = members_of(params)
    found = jitted(lambda p, m, t: each_member(model.apply, p, m, t))(params, members, tokens)
    apply = jitted(model.apply)
    for member, weights in enumerate(formed(params, members)):
        want = apply(weights, tokens)
        np.testing.assert_allclose(found[member], want, atol=1e-5 * np.abs(want).max())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of bytes, as the folder of a pretrained one."""
    folder = tmp_path_factory.mktemp("int8") / "model"
    model = decoder(CONFIGS["llama-tiny"])
    sr.save_hf(folder, model, model.init(jax.random.key(0)))
    write_byte_tokenizer(folder)
    return folder


@pytest.mark.slow
def test_finetune_holds_the_weights_in_int8(tmp_path, folder):
    """The task of `springroll finetune --weights int8 --state-bits 8`, told made-up scores."""
    config = FinetuneConfig(
        model=str(folder),
        task="arithmetic",
        pop_size=16,
        prompts=4,
        eval_problems=4,
        weights="int8",
        state_bits=8,
        out=str(tmp_path),
    )
    task = task_of(config, prepare(config))
    first, _ = task.init()
    scores = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    last, told = task.tell(first, task.ask(first), scores)
    assert 0 < float(told["step_ratio"]) < 0.02
    pick = lambda tree: tree["layers"]["mlp"]["up_proj"].values
    read, kept = pick(last.params), pick(last.master)
    assert read.dtype == kept.dtype == jnp.int8
    assert (kept != 0).mean() > 0.5  # steps that are smaller than those of the grid
    assert (read != pick(first.params)).mean() < 0.1
    codes = [x.dtype for x in jax.tree.leaves(last.opt_state) if x.size == read.size]
    assert codes == [jnp.int8] * 3  # the momentum of the matrices of the feed-forward half
    assert master_of(replace(config, rounding="float32")) == "float32"
