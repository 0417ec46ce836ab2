"""Every public function with what does not fit: one line, whichever argument it is."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll import envs, evolve, gguf, models, noise, quant, stream, subspace, tasks, tokens
from springroll.errors import InputError, as_path, check_takes
from springroll.evolve import tell_in_place
from springroll.generate import Generator
from springroll.models.hf import is_hf_folder, open_hf, read_config

NAN = math.nan
OTHERS = (None, 3, [], "", NAN, -1, True)  # no path, no name, no function, no number in range
BYTES, TEXT = tokens.byte_tokenizer(), np.zeros(1000, np.uint8)
PARAMS = {"w": jnp.ones((4, 4))}
X = jnp.ones((2, 4))
KEY = jax.random.key(0)
LLAMA = models.CONFIGS["llama-tiny"]
DECODER = models.decoder(LLAMA)
WEIGHTS = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), jax.eval_shape(DECODER.init, KEY))


def fn(params, x):
    return jnp.sum(x @ params["w"])


RIGHT = tasks.Verdict(1.0, True, True)


def streamed(model=DECODER, shapes=WEIGHTS, **given):
    options: Any = {"update": stream.DeviceUpdate(optax.sgd(0.1))} | given
    return sr.Streamed(model, shapes, **options)


def network(**given):
    options: Any = {"inputs": 4, "outputs": 4} | given
    return models.PolicyNetwork(**options)


def planned(**given):
    options: Any = {"device": "24GiB", "host": "64GiB"} | given
    return sr.plan("llama-tiny", **options)


def evolved(**given):
    options: Any = {"pop_size": 4, "sigma": 0.1} | given
    return sr.eggroll(**options)


def lowgrad(loss=fn, params=PARAMS, optimizer=None, x=X, **given):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    options: Any = {"rank": 2} | given
    return sr.lowgrad(loss, params, optimizer, x, **options)


def written(prompts):
    made = Generator(model=DECODER, end=frozenset((0,)), max_tokens=2)
    return made.run(WEIGHTS, None, prompts)


def task(**given):
    return tasks.text_task("arithmetic", **given)


def own(**given):
    options: Any = {"data": "no/such.jsonl"} | given
    return tasks.function_task("tests.tasks.reward_functions:length", **options)


def paths(call, *more):
    """Of a path: no other type, and nothing that no file can be called."""
    return (
        call,
        (),
        (*more, "x" * 300, "x/" * 3000, "a\0b", "\ud800", 2.5, {}, b"x", ["a"], object()),
    )


def functions(call, *fits):
    return call, fits, (lambda: 0, lambda a, b, c, d: 0, {}, b"x", object())


SPECS = {
    # name: (call, what of OTHERS fits, what else does not)
    "load_hf": paths(sr.load_hf),
    "read_config": paths(read_config),
    "open_hf": paths(open_hf),
    "is_hf_folder": paths(is_hf_folder),
    "save_hf": paths(lambda given: sr.save_hf(given, LLAMA, WEIGHTS)),
    "save_hf model": (lambda given: sr.save_hf("x/y", given, {}), (), ({}, LLAMA.hidden)),
    "save_hf params": (lambda given: sr.save_hf("x/y", LLAMA, given), (), ({}, PARAMS)),
    "save_hf dtype": (
        lambda given: sr.save_hf("x/y", LLAMA, WEIGHTS, dtype=given),
        (None,),
        ("int8", "nothing"),
    ),
    "save_hf like": (
        lambda given: sr.save_hf("x/y", LLAMA, WEIGHTS, like=given),
        (None,),
        ("no/such",),
    ),
    "save_hf shard_bytes": (
        lambda given: sr.save_hf("x/y", LLAMA, iter(()), dtype="float32", shard_bytes=given),
        (3,),
        (0, 1.5),
    ),
    "open_tokenizer": paths(tokens.open_tokenizer),
    "write_byte_tokenizer": paths(tokens.write_byte_tokenizer),
    "mapped_model": paths(stream.mapped_model),
    "read_header": paths(gguf.read_header),
    "model_folder": (gguf.model_folder, (), ("a\0b",)),
    "read_data": paths(tasks.read_data),
    "documents": (tasks.documents, ("",), ("x" * 300, "a\0b", "\ud800", {}, b"x")),
    "load_corpus": paths(tasks.load_corpus),
    "load_corpus max_bytes": (
        lambda given: tasks.load_corpus("stdlib", max_bytes=given),
        (None,),
        (0, 2000.5, "1"),
    ),
    "document_encoder": paths(tasks.document_encoder),
    "text_task": (tasks.text_task, (), ("sum", {})),
    "task_of_line": (tasks.task_of_line, (), ("'", "arithmetic digits", {})),
    "text_task digits": (lambda given: task(digits=given), (3,), (0, 1.5, "1")),
    "text_task seed": (lambda given: task(seed=given), (3, -1), (1.5, "1")),
    "text_task style": (lambda given: task(style=given), (), ("x",)),
    "text_task reward": (lambda given: task(reward=given), (), ("x",)),
    "text_task operators": (lambda given: task(operators=given), (), ("x",)),
    "function_task": (lambda given: tasks.function_task(given, data="x"), (), ("a", ":", {})),
    "function_task data": paths(lambda given: own(data=given)),
    "function_task seed": (lambda given: own(seed=given), (3,), (1.5, "1")),
    "function_task prompt": (lambda given: own(prompt=given), (None, ""), ()),
    "function_task answer": (lambda given: own(answer=given), (None, ""), ()),
    "function_task style": (lambda given: own(style=given), (), ("x",)),
    "function_task stop": (lambda given: own(stop=given), ([], ""), ([1],)),
    "function_task workers": (lambda given: own(workers=given), (3,), (0, 1.5)),
    "function_task timeout": (lambda given: own(timeout=given), (3,), (0, "1")),
    "function_task rows": (lambda given: own(rows=given), (3,), (0, 1.5)),
    "plan": (lambda given: sr.plan(given, device="24GiB", host="64GiB"), (), ("x" * 300, {})),
    "plan device": (lambda given: planned(device=given), (None, 3), (0, 1.5, "1e400GiB", "3", {})),
    "plan host": (lambda given: planned(host=given), (None, 3), (0, 1.5, "1e400GiB", "3", {})),
    "plan link": (lambda given: planned(link=given), (None, 3), (0, 1.5, "fast")),
    "plan method": (lambda given: planned(method=given), (), ("adamx", {})),
    "plan rates": (lambda given: planned(rates=given), (None,), ({},)),
    "plan dtype": (lambda given: planned(dtype=given), (), ("int8",)),
    "plan rounding": (lambda given: planned(rounding=given), (), ("x",)),
    "plan clip": (lambda given: planned(clip=given), (), ("x",)),
    "plan state_bits": (lambda given: planned(state_bits=given), (), (16, "8")),
    **{
        f"plan {name}": (lambda given, name=name: planned(**{name: given}), fits, (0, 1.5, "1"))
        for name, fits in {
            "tokens_per_step": (),
            "sequence": (),
            "micro_batch": (None,),
            "rank": (None, 3),
            "depth": (3,),
            "experts_per_bundle": (None,),
        }.items()
    },
    "open_gymnasium": (envs.open_gymnasium, (), ("no-such.py:make", {})),
    "open_gymnasium workers": (lambda given: envs.open_gymnasium("x.py:f", workers=given), (), ()),
    "open_objective": (envs.open_objective, (), ("no-such.py:make", {})),
    "prompt_tokens": (lambda given: tokens.prompt_tokens(BYTES, given), ("",), ({}, ["a"], b"x")),
    "prompt_tokens tokenizer": (lambda given: tokens.prompt_tokens(given, "x"), (), ({},)),
    "end_tokens": (tokens.end_tokens, (), ({},)),
    "end_tokens stop": (lambda given: tokens.end_tokens(BYTES, given), ([], ""), ([3],)),
    "find_answer": (lambda given: tasks.find_answer(given, "hash"), ("",), (b"x",)),
    "find_answer style": (lambda given: tasks.find_answer("x", given), (), ("x",)),
    "find_number": (lambda given: tasks.find_number(given, "hash"), ("",), (b"x",)),
    "baselines": (tasks.baselines, (), ({},)),
    "streams text": (lambda given: tasks.streams(given, 2, 3), (), ({},)),
    "streams": (lambda given: tasks.streams(TEXT, given, 3), (3,), (1.5,)),
    "validation": (lambda given: tasks.validation(given, 2, 3), (), ({},)),
    "tokenized": (
        lambda given: tasks.tokenized(given, lambda texts: [[1] for _ in texts]),
        (),
        ({},),
    ),
    "training_text": (tasks.training_text, (), ({},)),
    "linear": (lambda given: models.linear(given, 2), (3,), (1.5, 0)),
    "named": (models.named, (), ("llama-tny", {})),
    "decoder": (models.decoder, (), ({},)),
    "egg": (models.egg, (), ({},)),
    "stages": (models.stages, (), ({},)),
    "expert_stages": (lambda given: models.expert_stages(given, 2), (), (DECODER,)),
    "noise_named": (noise.noise_named, (), ("normal",)),
    "discover": functions(lambda given: sr.discover(given, PARAMS, X)),
    "explain": functions(lambda given: sr.explain(given, PARAMS, X)),
    "factored": functions(lambda given: sr.factored(given)(PARAMS, X)),
    "evaluate": functions(lambda given: sr.evaluate(given, *asked(), X)),
    "eggroll sigma": functions(lambda given: evolved(sigma=given), 3),
    "eggroll shaping": functions(lambda given: evolved(shaping=given)),
    "eggroll pop_size": (lambda given: evolved(pop_size=given), (), (0, 5, 1.5, "4")),
    "eggroll rank": (lambda given: evolved(rank=given), (3,), (0, 1.5)),
    "eggroll optimizer": (lambda given: evolved(optimizer=given), (None,), (optax.sgd,)),
    "eggroll noise": (lambda given: evolved(noise=given), (), ("normal",)),
    "eggroll noise_reuse": (lambda given: evolved(noise_reuse=given), (3,), (0, 1.5)),
    "eggroll roles": (lambda given: evolved(roles=given), (None,), ({"w": 3},)),
    "eggroll lr_units": (lambda given: evolved(lr_units=given), (), ("x",)),
    "eggroll master": (lambda given: evolved(master=given), (None,), ("x",)),
    "eggroll max_step_ratio": (lambda given: evolved(max_step_ratio=given), (None, 3), (0,)),
    "eggroll momentum": (lambda given: evolved(momentum=given), (None,), ({},)),
    "eggroll mesh": (lambda given: evolved(mesh=given), (None,), ({},)),
    "eggroll antithetic": (lambda given: evolved(antithetic=given), (True,), ()),
    "open_es sigma": functions(lambda given: sr.open_es(pop_size=4, sigma=given), 3),
    "lattice sigma": functions(lambda given: sr.lattice(pop_size=4, sigma=given), 3),
    "lattice rule": (lambda given: sr.lattice(pop_size=4, rule=given), (), ("x",)),
    "tell_in_place": (tell_in_place, (), (optax.sgd(0.1),)),
    "tell_in_place slice_bytes": (lambda given: tell_in_place(ES, given), (3,), (0, 1.5)),
    "member": (lambda given: sr.member(*asked(), given), (3,), (4, 1.5)),
    "best_member": (lambda given: sr.best_member(*asked(), given), (), ([1, 2],)),
    "lowgrad": functions(lowgrad),
    "lowgrad params": (lambda given: lowgrad(params=given), (3, NAN, -1, True), ({"w": "x"},)),
    "lowgrad optimizer": (
        lambda given: sr.lowgrad(fn, PARAMS, given, X, rank=2),
        (),
        (optax.sgd,),
    ),
    "lowgrad select": functions(lambda given: lowgrad(select=given), None),
    **{
        f"lowgrad {name}": (lambda given, name=name: lowgrad(**{name: given}), fits, (0.5, "x"))
        for name, fits in {
            "rank": (3,),
            "refresh_interval": (3,),
            "turns": (3,),
            "accumulate": (3,),
            "seed": (3, -1),
            "refresh": (),
            "moments": (),
        }.items()
    },
    "lowgrad scale": (lambda given: lowgrad(scale=given), (None, 3), ("x",)),
    "lowgrad widen": (lambda given: lowgrad(widen=given), (None, 3), ("x",)),
    "hf_adamw": functions(subspace.hf_adamw, 3),
    "adam_direction": (subspace.adam_direction, (), (1, "x")),
    **{
        f"{make.__name__} {name}": (
            lambda given, make=make, name=name: make(
                **({"learning_rate": 0.1, "rank": 2} | {name: given})
            ),
            fits,
            (math.inf, "x", {"a": "x"}),
        )
        for make in (sr.apollo, sr.apollo_mini, sr.fira)
        for name, fits in {
            "learning_rate": (3,),
            "rank": (3,),
            "scale": (3,),
            "gamma": (3,) if make is sr.fira else (None, 3),
            "b1": (),
            "b2": (),
            "eps": (3,),
            "weight_decay": (3,),
            "compat": (None,),
            "direction": (None,),
            "refresh_interval": (3,),
            "refresh": (),
            "side": (),
        }.items()
    },
    "galore": (lambda given: sr.galore(given, 2), (), (optax.sgd,)),
    "galore rank": (lambda given: sr.galore(optax.sgd(0.1), given), (3,), (0, 1.5)),
    "galore scale": (lambda given: sr.galore(optax.sgd(0.1), 2, scale=given), (3,), ("x",)),
    "quantize_state": (sr.quantize_state, (), (optax.sgd,)),
    **{
        f"quantize_state {name}": (
            lambda given, name=name: sr.quantize_state(optax.adam(0.1), **{name: given}),
            fits,
            ("x", 1.5),
        )
        for name, fits in {
            "bits": (),
            "block": (None, 3),
            "min_size": (3,),
            "seed": (3, -1),
        }.items()
    },
    "with_split_master": (sr.with_split_master, (), (optax.sgd,)),
    "with_stochastic_rounding": (sr.with_stochastic_rounding, (), (optax.sgd,)),
    "quantize_weights select": (
        lambda given: quant.quantize_weights(PARAMS, given),
        (),
        (lambda: 0,),
    ),
    "layerwise": (lambda given: sr.layerwise(given, optax.sgd(0.1)).init(PARAMS), (), ({},)),
    "layerwise optimizer": (lambda given: sr.layerwise(DECODER, given), (), (optax.sgd,)),
    "layerwise clip": (
        lambda given: sr.layerwise(DECODER, optax.sgd(0.1), clip=given),
        (None, 3),
        (0, "x"),
    ),
    "AdamW": functions(stream.AdamW, 3),
    "AdamW eps": (
        lambda given: stream.AdamW(0.1, eps=given),
        (3,),
        (jnp.float32(NAN), np.float32(-1), np.bool_(True), np.asarray("x"), jnp.ones(2)),
    ),
    **{
        f"Streamed {name}": (lambda given, name=name: streamed(**{name: given}), fits, (0.5, b"x"))
        for name, fits in {
            "model": (),
            "shapes": (),
            "update": (),
            "depth": (3,),
            "parts": (3,),
            "kept_inputs": (None, 3),
            "clip": (),
            "order": (),
            "on_device": ([],),
        }.items()
    },
    "Clip limit": (lambda given: streamed(clip=stream.Clip(given)), (None, 3), ("x", b"x", [1.0])),
    "Clip by": (lambda given: streamed(clip=stream.Clip(1.0, given)), (), ("x", {})),
    "HostUpdate": (lambda given: stream.HostUpdate(stream.AdamW(0.1), given), (), (optax.adam,)),
    "HostUpdate adamw": (lambda given: stream.HostUpdate(given, optax.adam(0.1)), (), ({},)),
    **{
        f"HostUpdate {name}": (
            lambda given, name=name: stream.HostUpdate(
                stream.AdamW(0.1), optax.adam(0.1), **{name: given}
            ),
            (None, 3),
            (0, 1.5, 10**400),
        )
        for name in ("threads", "waiting")
    },
    **{
        f"PolicyNetwork {name}": (
            lambda given, name=name: network(**{name: given}),
            fits,
            (1.5, 10**400),
        )
        for name, fits in {
            "inputs": (3,),
            "outputs": (3,),
            "width": (3,),
            "layers": (3,),
            "deviations": (3,),
            "compute": (),
        }.items()
    },
    "group_centred": (evolve.group_centred, (3,), (0, 1.5, jnp.ones(4), [1.5])),
    "Momentum.of": (evolve.Momentum.of, (), (1.0, "x")),
    "Momentum decay": (lambda given: evolved(momentum=evolve.Momentum(given, 2)), (), (1.0,)),
    "Momentum generations": (
        lambda given: evolved(momentum=evolve.Momentum(0.9, given)),
        (3,),
        (0, 1.5),
    ),
    "report": (lambda given: tasks.report(given, [1], [False]), (), ([1], {})),
    "report lengths": (lambda given: tasks.report([RIGHT], given, [False]), (), (["x"], [1.5])),
    "report truncated": (lambda given: tasks.report([RIGHT], [1], given), (), (["x"], [1])),
    "whole_layers": (stream.whole_layers, (), ({}, {"layers": {}}, {"layers": 3})),
    "experts_apart": (lambda given: stream.experts_apart(given, 2), (), ({},)),
    "stream_population": (
        lambda given: stream.stream_population(given, DECODER, PARAMS, key=KEY),
        (),
        ({},),
    ),
    "Generator model": (
        lambda given: Generator(model=given, end=frozenset(), max_tokens=2),
        (),
        (),
    ),
    **{
        f"Generator {name}": (
            lambda given, name=name: Generator(
                **({"model": DECODER, "end": frozenset((0,)), "max_tokens": 2} | {name: given})
            ),
            fits,
            (1.5 if name not in ("temperature",) else "x", "x"),
        )
        for name, fits in {
            "max_tokens": (3,),
            "temperature": (3,),
            "top_k": (None, 3),
            "rows": (None, 3),
            "memory_bytes": (None, 3),
            "segment": (3,),
            "prefill_tokens": (3,),
            "shared_prompt_tokens": (None, 3),
        }.items()
    },
    "Generator.run": (
        written,
        (),
        (
            ["ab"],
            [[10**12]],
            [[1.5]],
            [[]],
            [[-1]],
            [[256]],
            [None],
            [3],
            [[[1]]],
            [[True]],
            [["a"]],
        ),
    ),
}


ES = sr.eggroll(pop_size=4, sigma=0.1)


def asked():
    state = ES.init(KEY, PARAMS)
    return state, ES.ask(state)


@pytest.mark.parametrize("name", SPECS)
def test_what_does_not_fit_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, fits, more = SPECS[name]
    fits = [(type(x), x) for x in fits]
    for given in (*(x for x in OTHERS if (type(x), x) not in fits), *more):
        with pytest.raises(InputError) as error:
            call(given)
            pytest.fail(f"{given!r} was taken")
        assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_a_function_takes_what_it_is_called_with():
    for fits in (fn, jax.jit(fn), functools.partial(lambda a, b, c: a, 1), jax.vmap(fn), max):
        check_takes(fits, "fn", 1, 2)
    wraps = functools.wraps(lambda one: one)(lambda *given: given)
    check_takes(wraps, "fn", 1, 2)  # what is wrapped takes another number
    message = r"fn is fn\(params, x\), which is called with 1 argument: missing a required.*'x'"
    for wrong in (fn, jax.jit(fn)):
        with pytest.raises(InputError, match=message):
            check_takes(wrong, "fn", 1)


def test_paths_are_as_long_as_files_are_called():
    assert as_path("x" * 255).name == "x" * 255
    with pytest.raises(InputError, match=r"folder is '.*; expected a path, whose names have 255"):
        as_path("ok/" + "x" * 256)
    with pytest.raises(InputError, match="folder is ''; expected a path, which is not empty"):
        as_path("")
