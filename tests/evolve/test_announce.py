"""What is evolved is what is said: weights formed whole, int8 beside floats, complex parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.quant.int8_weights import int8_of
from springroll.thin import DensifyWarning

KEY = jax.random.key(0)
CHANNELS = 32


def masked(params, x):
    return jnp.sum(x @ jnp.where(jnp.eye(CHANNELS) > 0, params["w"], 0.0))


def normed(params, x):
    w = params["w"]
    return jnp.sum(x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True)))


def depthwise(params, x):
    kernel = params["w"][:, None, :]  # (channels, 1, taps)
    spread = jax.lax.conv_general_dilated(
        x[:, :, None], kernel, (1,), "SAME", feature_group_count=CHANNELS
    )
    return jnp.sum(spread)


slow = [pytest.param(fn, marks=pytest.mark.slow) for fn in (normed, depthwise)]


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("fn", [masked, *slow])
def test_a_weight_that_is_formed_is_said_once_and_may_be_marked(fn, planned):
    """Its path, line and bytes, and a role that every function takes."""
    params, x = {"w": jnp.ones((CHANNELS, CHANNELS))}, jnp.ones((2, CHANNELS))

    def run(roles):
        es = sr.eggroll(pop_size=4, sigma=0.1, roles=roles)
        state = es.init(KEY, params)
        for _ in range(2):
            members = es.ask(state)
            state, _ = es.tell(state, members, sr.evaluate(fn, state, members, x))
        return state.params["w"]

    roles = dict(sr.discover(fn, params, x)) if planned else {}
    with pytest.warns(DensifyWarning) as caught:
        run(roles)
    places = [str(each.message) for each in caught]
    assert len(set(places)) == len(places) and (len(places) == 1 or not planned)
    for text in places:
        assert re.match(r"w \(float32\[32,(1,)?32\], 4,096 bytes per member\) cannot stay", text)
        assert "test_announce.py:" in text and f"({fn.__name__})" in text
        assert "roles={'w': 'dense'}" in text and "\n" not in text
    run({**roles, "w": "dense"})  # as advised, and without a word
    run({**roles, "*": "dense"})


@pytest.mark.parametrize("planned", [False, True])
def test_above_a_mebibyte_it_is_refused(planned):
    params, x = {"w": jnp.ones((1024, 1024))}, jnp.ones((1, 1024))
    fn = lambda params, x: jnp.sum(x @ jnp.where(x.T > 0, params["w"], 0.0))
    roles = dict(sr.discover(fn, params, x)) if planned else {}
    make = lambda roles: sr.eggroll(pop_size=2, sigma=0.1, roles=roles)
    with pytest.raises(InputError, match=r"w .*4,194,304 bytes.*'select_n' at .*test_announce"):
        state = make(roles).init(KEY, params)
        sr.evaluate(fn, state, make(roles).ask(state), x)
    es = make({**roles, "w": "dense"})
    state = es.init(KEY, params)
    assert jax.eval_shape(lambda: sr.evaluate(fn, state, es.ask(state), x)).shape == (2,)


def both(params, x):
    return jnp.sum(x @ params["w"].astype(jnp.float32)) + jnp.sum(x @ params["v"])


MIXED = {"w": jnp.ones((4, 3), jnp.int8), "v": jnp.ones((4, 3))}
X = jnp.ones((2, 4))


def test_int8_beside_floats_is_frozen_by_eggroll_and_evolved_by_the_lattice():
    roles = sr.discover(both, MIXED, X)
    assert (roles["w"].kind, roles["v"].kind) == ("frozen", "low-rank")
    assert roles["w"].program_kind == "low-rank" and roles["w"].roles == "mn"
    assert "sr.lattice" in roles["w"].reason
    for given in (roles, None):
        evolved = {}
        for name, make in {"eggroll": sr.eggroll, "lattice": sr.lattice}.items():
            es = make(pop_size=4, sigma=0.5, roles=given)
            members = es.ask(es.init(KEY, MIXED))
            evolved[name] = [leaf.path for leaf in members.perturbation.evolved]
        assert evolved == {"eggroll": ["v"], "lattice": ["w"]}
    assert (
        sr.discover(lambda p, x: both({**p, "v": X.T}, x), {"w": MIXED["w"]}, X)["w"].kind
        == "low-rank"
    )


def test_int8_weights_that_stand_for_floats_are_evolved():
    params = {"q": int8_of(jnp.ones((3, 4))), "v": jnp.ones((4, 3))}
    fn = lambda p, x: jnp.sum(
        (x @ p["q"].values.astype(jnp.float32).T) * p["q"].scale[None] @ p["v"].T
    )
    roles = sr.discover(fn, params, X)
    assert {path: role.kind for path, role in roles.items()} == {
        "q/values": "low-rank",
        "q/scale": "frozen",
        "v": "low-rank",
    }
    es = sr.eggroll(pop_size=4, sigma=0.5, roles=roles)
    members = es.ask(es.init(KEY, params))
    assert {leaf.path for leaf in members.perturbation.evolved} == {"q/values", "v"}


def test_complex_parameters_are_frozen_with_a_word():
    params = {"c": jnp.ones((4, 3), jnp.complex64), "v": jnp.ones((4, 3))}
    fn = lambda p, x: jnp.sum(jnp.abs(x.astype(jnp.complex64) @ p["c"])) + jnp.sum(x @ p["v"])
    roles = sr.discover(fn, params, X)
    assert roles["c"].kind == "frozen" and "two real arrays" in roles["c"].reason
    for given in ({}, dict(roles)):
        with pytest.warns(UserWarning, match=r"c \(complex64\[4, 3\]\) is frozen") as caught:
            sr.eggroll(pop_size=4, sigma=0.1, roles=given).init(KEY, params)
        assert len(caught) == 1
        sr.eggroll(pop_size=4, sigma=0.1, roles={**given, "c": "frozen"}).init(KEY, params)


def test_nothing_to_evolve_names_the_other_strategy():
    with pytest.raises(InputError, match=r"w is int8: sr\.lattice evolves int8"):
        sr.eggroll(pop_size=4, sigma=0.1).init(KEY, {"w": MIXED["w"]})
    with pytest.raises(InputError, match=r"v is float32: sr\.eggroll evolves floats"):
        sr.lattice(pop_size=4).init(KEY, {"v": MIXED["v"]})


def test_a_pattern_evolves_nothing_that_cannot_be():
    params = {"steps": jnp.arange(3), "w": jnp.ones((4, 3))}
    es = sr.open_es(pop_size=4, sigma=10.0)
    state = es.init(KEY, params)
    state, _ = es.tell(state, es.ask(state), [1.0, 2.0, 3.0, 4.0])
    np.testing.assert_array_equal(state.params["steps"], params["steps"])
    with pytest.raises(InputError, match=r"steps is int32\[3\], which cannot be evolved here"):
        sr.eggroll(pop_size=4, sigma=0.1, roles={"steps": "dense"}).init(KEY, params)


def test_advice_can_be_followed_whatever_the_path():
    """A path may hold what patterns give a meaning to."""
    params, x = {"a[0]": jnp.ones((32, 32))}, jnp.ones((2, 32))
    fn = lambda p, x: jnp.sum(x @ jnp.exp(p["a[0]"]))
    es = sr.eggroll(pop_size=4, sigma=0.1, roles={**sr.discover(fn, params, x), "a[0]": "dense"})
    state = es.init(KEY, params)
    sr.evaluate(fn, state, es.ask(state), x)
