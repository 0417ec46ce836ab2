"""What users hand over by mistake gets one line; what they hand over stays theirs."""

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.quant.int8_weights import int8_of

KEY = jax.random.key(0)
X = jnp.ones((3, 4))
PARAMS = {"w": jnp.ones((4, 2)), "s": 0.5}  # a Python float is a parameter too


def fn(params, x):
    return jnp.sum(x @ params["w"]) * params["s"]


ES = sr.eggroll(pop_size=4, sigma=0.1)


@pytest.fixture(scope="module")
def asked():
    state = ES.init(KEY, PARAMS)
    return state, ES.ask(state)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda p, x: (fn(p, x), x), "tuple of 2; .* give has_aux=True"),
        (lambda p, x: {"fitness": fn(p, x)}, "fn returned a dict as fitness; expected a scalar"),
        (lambda p, x: None, "fn returned None as fitness"),
        (lambda p, x: "good", "fn returned 'good'; expected arrays"),
        (
            lambda p, x: fn(p, x).astype(jnp.complex64),
            "fn returned complex64 as fitness; expected a real",
        ),
        ("fn", "fn is 'fn'; expected a function"),
    ],
)
def test_fitness_functions(asked, wrong, says):
    with pytest.raises(InputError, match=says) as error:
        sr.evaluate(wrong, *asked, X)
    assert "\n" not in str(error.value)


def test_an_auxiliary_result_must_be_there(asked):
    with pytest.raises(InputError, match=r"has_aux=True expected \(fitness, aux\)"):
        sr.evaluate(fn, *asked, X, has_aux=True)


@pytest.mark.parametrize("value", ["train", np.array(["train"]), np.array([None]), object()])
def test_arguments_that_are_no_arrays(asked, value):
    with pytest.raises(InputError, match=r"argument 1/mode of fn is .*; expected arrays") as error:
        sr.evaluate(lambda p, x, options: fn(p, x), *asked, X, {"mode": value})
    assert "\n" not in str(error.value)


def test_swapped_and_missing_arguments(asked):
    state, members = asked
    params: Any = PARAMS
    nothing: Any = None
    some: Any = [1, 2, None, 4]
    for call, says in {
        lambda: ES.init(params, KEY): r"init takes \(key, params\), and the key is a dict",
        lambda: ES.init(PARAMS["w"], PARAMS): r"the key is a float32\[4,2\]",
        lambda: ES.init(jax.random.split(KEY, 2), PARAMS): "the key is a key",
        lambda: ES.ask(params): "the state is a dict; expected what es.init returns",
        lambda: sr.evaluate(fn, members, state, X): "state and members are swapped",
        lambda: sr.evaluate(fn, state, state, X): "the members are an EvolutionState; expected",
        lambda: ES.tell(members, state, [1, 2, 3, 4]): "state and members are swapped",
        lambda: ES.tell(state, some, members): "the members are a list; expected what",
        lambda: ES.tell(state, members, some): "fitness is a list; expected 4 numbers",
        lambda: ES.tell(state, members, nothing): "fitness is None; expected 4 numbers",
        lambda: ES.tell(state, members, [1, 2, 3]): r"fitness has shape \[3\]; expected \[4\]",
        lambda: ES.tell(state, members, [1, 2, 3, 1 << 99]): "expected 4 numbers",
        lambda: ES.tell(
            state, members, jnp.ones(4, jnp.complex64)
        ): "fitness is complex64; expected real",
    }.items():
        with pytest.raises(InputError, match=says) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", [sr.eggroll, sr.open_es, sr.lattice])
@pytest.mark.parametrize(
    "sigma", [float("inf"), float("nan"), 0, -1.0, 1e-300, 1e39, "0.1", None, True, [0.1]]
)
def test_sigma_is_a_positive_number_that_float32_holds(make, sigma):
    with pytest.raises(InputError, match=r"sigma is .*; expected a positive number") as error:
        make(pop_size=4, sigma=sigma)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": "normal"}, "noise 'normal' is unknown; expected one of gaussian"),
        ({"noise": 3}, "noise is an int; expected a name"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; expected an optax optimizer"),
        ({"optimizer": optax.adam}, "optimizer is a function; expected an optax optimizer"),
        ({"shaping": 3}, "shaping is an int; expected a name or a function"),
        ({"pop_size": 8.0}, "pop_size is 8.0; expected a whole number"),
        ({"pop_size": "8"}, "pop_size is '8'; expected a whole number"),
        ({"rank": 1.5}, "rank is 1.5; expected a whole number"),
        ({"max_step_ratio": float("inf")}, "max_step_ratio is inf; expected a positive number"),
        ({"max_step_ratio": float("nan")}, "max_step_ratio is nan; expected a positive number"),
    ],
)
def test_options_are_checked_when_the_strategy_is_made(options, says):
    with pytest.raises(InputError, match=says) as error:
        sr.eggroll(**{"pop_size": 4, "sigma": 0.1, **options})
    assert "\n" not in str(error.value)


def test_fitness_may_be_a_list(asked):
    state, members = asked
    told = [ES.tell(state, members, f)[0].params["w"] for f in ([1, 2, 3, 4], np.arange(1, 5))]
    np.testing.assert_array_equal(told[0], told[1])
    np.testing.assert_array_equal(told[0], ES.tell(state, members, jnp.arange(1, 5))[0].params["w"])
    flags = ES.tell(state, members, [True, False, True, False])[1]
    assert flags["fitness_max"] == 1


@pytest.mark.parametrize("optimizer", [optax.adam, pytest.param(optax.sgd, marks=pytest.mark.slow)])
def test_no_learning_rate_destroys_the_model(optimizer):
    """The bound on steps holds for any, and what is not finite is not stored."""

    def step(lr, scale, max_step_ratio):
        es = sr.eggroll(
            pop_size=4, sigma=0.1, optimizer=optimizer(lr), max_step_ratio=max_step_ratio
        )
        state = es.init(KEY, {"w": jnp.ones((4, 2)) * scale})
        new, metrics = es.tell(state, es.ask(state), [1.0, 2.0, 3.0, 4.0])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((new.params, new.opt_state)))
        moved = np.linalg.norm(new.params["w"] - state.params["w"])
        return moved / np.sqrt(8), metrics["step_ratio"]

    assert all(step(lr, 1.0, 0.1)[0] <= 0.1 for lr in (float("inf"), float("nan"), 1e38))
    assert step(float("inf"), 1.0, None)[0] == step(float("inf"), 0.0, 0.1)[0] == 0
    moved, ratio = step(1e3, 1.0, 0.1)
    np.testing.assert_allclose([moved, ratio], 0.1, rtol=1e-4)


def test_python_floats_are_parameters_with_roles_too():
    roles = sr.discover(fn, PARAMS, X)
    assert (roles["w"].kind, roles["s"].kind, roles["s"].dtype) == ("low-rank", "dense", "float32")
    es = sr.eggroll(pop_size=4, sigma=0.1, roles=roles)
    state = es.init(KEY, PARAMS)
    new, _ = es.tell(state, es.ask(state), sr.evaluate(fn, state, es.ask(state), X))
    assert new.params["s"] != PARAMS["s"]


@pytest.mark.parametrize("planned", [False, True])
def test_empty_parameters_stand_still(planned):
    params = {"w": jnp.ones((4, 2)), "none": jnp.ones((0, 4))}
    score = lambda p, x: jnp.sum(x @ p["w"]) + jnp.sum(p["none"] @ x.T)
    roles = sr.discover(score, params, X) if planned else None
    for es in (
        sr.eggroll(pop_size=4, sigma=0.1, roles=roles),
        sr.open_es(pop_size=4, sigma=0.1),
    ):
        state = es.init(KEY, params)
        members = es.ask(state)
        new, _ = es.tell(state, members, sr.evaluate(score, state, members, X))
        assert new.params["none"].shape == (0, 4)
    with pytest.raises(InputError, match="no parameter is left to evolve: all are frozen, empty"):
        sr.eggroll(pop_size=4, sigma=0.1).init(KEY, {"none": params["none"]})


def test_arrays_that_were_handed_over_stay():
    """Nothing is deleted, and what is written to NumPy arrays later changes no state."""
    theirs = np.ones(4096, np.float32)
    params = {"a": jnp.ones((4, 2)), "b": theirs}
    score = lambda p, x: jnp.sum(x @ p["a"]) + jnp.sum(p["b"])
    es = sr.eggroll(pop_size=4, sigma=0.1, optimizer=optax.adam(0.1))
    states = [es.init(KEY, params)]
    theirs[:] = 7
    np.testing.assert_array_equal(states[0].params["b"], np.ones(4096))
    for _ in range(2):
        members = es.ask(states[-1])
        fitness = sr.evaluate(score, states[-1], members, X)
        states.append(es.tell(states[-1], members, fitness)[0])
        every = jax.tree.leaves((params, states, members, fitness))
        assert not any(x.is_deleted() for x in every if isinstance(x, jax.Array))


def test_a_function_that_is_made_anew_is_noticed_once(asked):
    def loop(make):
        for _ in range(6):
            sr.evaluate(make(), *asked, X)

    for make in (
        lambda: lambda p, x: fn(p, x),
        lambda: functools.partial(lambda p, x, a: fn(p, x) * a, a=2.0),
        lambda: jax.jit(lambda p, x: fn(p, x) + 1),
    ):
        with pytest.warns(UserWarning, match="<lambda> .*new function object") as caught:
            loop(make)
        assert len(caught) == 1 and "test_arguments.py" in str(caught[0].message)


@dataclasses.dataclass(frozen=True)
class Model:
    shift: float

    def score(self, params, x):
        return fn(params, x) + self.shift


def test_functions_that_stay_are_not_noticed(asked):
    several = [functools.partial(lambda p, x, a: fn(p, x) + a, a=a) for a in (1.0, 2.0)]
    model = Model(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(6):
            for each in (*several, model.score, fn):
                sr.evaluate(each, *asked, X)


@pytest.mark.parametrize(
    "master",
    [
        "error_feedback_4bit",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("error_feedback", "float32", "stochastic", None)
        ),
    ],
)
def test_int8_weights_stay_where_a_step_is_not_finite(master):
    params = {"w": int8_of(jax.random.normal(KEY, (4, 6)))}
    es = sr.eggroll(pop_size=4, sigma=0.1, optimizer=optax.sgd(float("inf")), master=master)
    state = es.init(KEY, params)
    new, _ = es.tell(state, es.ask(state), [1.0, 2.0, 3.0, 4.0])
    jax.tree.map(np.testing.assert_array_equal, (new.params, new.master), (params, state.master))


def test_random_keys_among_the_parameters_stand_still():
    """As of dropout in the state of a Flax model."""

    def fn(params, x):
        return -jnp.sum((x @ params["w"] + jax.random.normal(params["key"], (2, 4))) ** 2)

    params, x = {"w": jnp.ones((4, 4)), "key": jax.random.key(3)}, jnp.ones((2, 4))
    es = sr.eggroll(pop_size=4, rank=1, sigma=0.1, optimizer=optax.sgd(0.1))
    state = es.init(jax.random.key(0), params)
    members = es.ask(state)
    state, _ = es.tell(state, members, sr.evaluate(fn, state, members, x))
    assert state.params["key"] == params["key"] and (state.params["w"] != params["w"]).any()
    with pytest.raises(InputError, match="no parameter is left to evolve"):
        es.init(jax.random.key(0), {"key": params["key"]})
    trainer = sr.lowgrad(lambda *given: -fn(*given), params, optax.sgd(0.1), x, rank=1)
    trained, _ = trainer.update(trainer.init(params), x)
    assert trained.params["key"] == params["key"]
