"""Which parameter is perturbed how, the shapes of factors, and what is refused."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import springroll as sr
from springroll.errors import InputError
from springroll.evolve.members import Members
from springroll.evolve.roles import default_roles, describe
from springroll.thin.factored_array import Factored
from tests.evolve.dense_population import all_noise

PARAMS = {
    "emb": jnp.zeros((10, 6)),
    "blocks": {"w": jnp.zeros((3, 6, 5)), "bias": jnp.zeros((3, 5))},
    "scale": jnp.zeros(6),
    "steps": jnp.zeros((), jnp.int32),
    "table": jnp.zeros((4, 4), jnp.int8),
}
SEED = jnp.array([1, 2], jnp.uint32)


def kinds(perturbation):
    return {leaf.path: (leaf.kind, leaf.roles) for leaf in perturbation.leaves}


def members_of(perturbation, pairs, epoch=0):
    numbers = jnp.arange(pairs, dtype=jnp.uint32)
    one = jnp.float32(1)
    return Members(numbers, None, SEED, jnp.int32(epoch), one, perturbation)


def test_shapes_decide_without_roles():
    assert kinds(describe(PARAMS, rank=1)) == {
        "blocks/bias": ("low-rank", "mn"),
        "blocks/w": ("low-rank", "smn"),
        "emb": ("low-rank", "mn"),
        "scale": ("dense", ""),
        "steps": ("frozen", ""),
        "table": ("frozen", ""),
    }
    assert [default_roles(s) for s in ((), (3,), (3, 4), (2, 3, 4))] == ["", "", "mn", "smn"]


def test_patterns_override_and_later_ones_win():
    roles = {"blocks/*": "frozen", "*/bias": "dense", "emb": "nm", "scale": "frozen"}
    found = kinds(describe(PARAMS, rank=1, roles=roles))
    assert found["blocks/w"][0] == "frozen" and found["scale"][0] == "frozen"
    assert found["blocks/bias"] == ("dense", "") and found["emb"] == ("low-rank", "nm")


def test_int8_weights_are_evolved_on_request():
    assert kinds(describe(PARAMS, rank=1, integers=True))["table"] == ("low-rank", "mn")


def test_discovered_roles_decide():
    def fn(params, tokens):
        def block(x, layer):
            return jax.nn.relu(x @ layer["w"] @ layer["w"].T) + layer["bias"].sum(), None

        x = params["emb"][tokens] * params["scale"][None]
        return jax.lax.scan(block, x, params["blocks"])[0].sum()

    roles = sr.discover(fn, PARAMS, jnp.arange(3))
    found = kinds(describe(PARAMS, rank=1, roles=roles))
    assert found["blocks/w"] == ("low-rank", "smn") or found["blocks/w"] == ("low-rank", "snm")
    assert found["blocks/bias"][0] == "dense" and found["scale"][0] == "dense"
    assert found["emb"][0] == "low-rank"
    assert found["table"][0] == "frozen"
    with pytest.raises(InputError, match=r"extra \[2, 2\] is not in what .* \(no such path\)"):
        describe({**PARAMS, "extra": jnp.zeros((2, 2))}, rank=1, roles=roles)
    with pytest.raises(InputError, match=r"emb \[9, 6\] is not in what .* \(\[10, 6\] there\)"):
        describe({**PARAMS, "emb": jnp.zeros((9, 6))}, rank=1, roles=roles)
    joined = kinds(describe(PARAMS, rank=1, roles={**roles, "emb": "frozen", "blocks/w": "dense"}))
    assert joined["emb"][0] == "frozen" and joined["blocks/w"] == ("dense", "s")
    assert {path: joined[path] for path in ("scale", "table")} == {
        path: found[path] for path in ("scale", "table")
    }


@pytest.mark.parametrize("make", [sr.eggroll, sr.lattice])
def test_the_old_name_of_roles_works_and_warns(make):
    integers = make is sr.lattice
    params = jax.tree.map(lambda x: x.astype(jnp.int8), PARAMS) if integers else PARAMS
    fn = lambda params, x: (
        (x @ params["emb"].astype(jnp.float32)).sum() * params["scale"].astype(jnp.float32).sum()
    )
    discovered = sr.discover(fn, params, jnp.ones((2, 10)))
    options = {"pop_size": 4, "sigma": 0.1}
    with pytest.warns(DeprecationWarning, match=r"'plan' of (eggroll|lattice) is now 'roles'"):
        old = make(plan=discovered, roles={"scale": "frozen", "emb": "dense"}, **options)
    new = make(roles={**discovered, "scal*": "frozen", "[e]mb": "dense"}, **options)
    described = lambda es: es.parts.population.perturbation(params)
    assert described(old) == described(new)
    assert "plan" not in inspect.signature(make).parameters


@pytest.mark.filterwarnings("ignore:the keyword 'plan'")
def test_what_is_no_roles_is_refused():
    class Plan:
        pass

    for options in ({"roles": Plan()}, {"plan": Plan()}):
        with pytest.raises(InputError, match=r"roles is a .*Plan; expected what sr.discover"):
            sr.eggroll(pop_size=4, sigma=0.1, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the role of 'w' is 3; expected 'frozen', 'dense'"):
        sr.lattice(pop_size=4, roles={"w": 3})  # type: ignore[arg-type]


def test_factor_shapes_put_pairs_behind_the_stacked_axes():
    perturbation = describe(
        PARAMS, rank=2, noise="int8", roles={"emb": "mn", "blocks/bias": "dense"}
    )
    pairs = jnp.arange(7, dtype=jnp.uint32)
    factors = jax.jit(perturbation.draw)(SEED, jnp.int32(0), pairs)
    shapes = {path: [x.shape for x in group] for path, group in factors.items()}
    assert shapes == {
        "blocks/bias": [(7, 3, 5)],
        "blocks/w": [(3, 7, 6, 2), (3, 7, 5, 2)],
        "emb": [(7, 10, 2), (7, 6, 2)],
        "scale": [(7, 6)],
    }
    assert all(x.dtype == jnp.int8 for group in factors.values() for x in group)
    assert perturbation.bytes_per_pair() == 15 + 3 * 11 * 2 + 16 * 2 + 6
    layers = np.asarray(factors["blocks/w"][0])
    assert not (layers[0] == layers[1]).all()


def test_attached_leaves_are_factored_or_dense():
    perturbation = describe(PARAMS, rank=1)
    factors = perturbation.draw(SEED, jnp.int32(0), jnp.arange(1, dtype=jnp.uint32))
    one = {p: tuple(x[0] if p != "blocks/w" else x[:, 0] for x in g) for p, g in factors.items()}
    attached = perturbation.attach(PARAMS, one, jnp.float32(-1), jnp.float32(0.5))
    assert isinstance(attached["emb"], Factored) and attached["blocks"]["w"].roles == "smn"
    np.testing.assert_allclose(attached["emb"].gain, -0.5)
    np.testing.assert_allclose(attached["scale"], -0.5 * one["scale"][0], rtol=1e-6)
    assert attached["steps"] is PARAMS["steps"]


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_entries_of_the_noise_have_unit_variance_and_kurtosis_3_plus_6_over_r(rank):
    """Research 6.2. Only one entry per row and column: entries of a row share a factor."""
    perturbation = describe({"w": jnp.zeros((8, 8))}, rank=rank)
    left, right = jax.jit(perturbation.draw)(
        SEED, jnp.int32(0), jnp.arange(1 << 15, dtype=jnp.uint32)
    )["w"]
    entries = np.einsum("pir,pir->pi", np.asarray(left, np.float64), np.asarray(right, np.float64))
    entries /= np.sqrt(rank)
    kurtosis = 3 + 6 / rank
    spread = np.std(entries**4) / np.sqrt(entries.size)
    assert abs(entries.var() - 1) < 5 * np.sqrt((kurtosis - 1) / entries.size)
    assert abs((entries**4).mean() - kurtosis) < 5 * spread + 0.02


@pytest.mark.parametrize("noise", ["rademacher", "int8"])
def test_integer_noise_has_unit_variance_after_scaling(noise):
    perturbation = describe({"w": jnp.zeros((6, 5)), "b": jnp.zeros(5)}, rank=3, noise=noise)
    dense = all_noise(members_of(perturbation, 400))
    for path in ("w", "b"):
        values = np.stack([d[path] for d in dense])
        assert abs(values.var() - 1) < 0.15 and abs(values.mean()) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank is 0; expected an integer of at least 1"),
        ({"rank": 6}, r"blocks/bias: rank 6 is above min\(m, n\) = 3 of shape \[3, 5\]"),
        (
            {"rank": 1, "roles": {"blocks/v": "dense"}},
            "'blocks/v' matches no parameter; the nearest is 'blocks/w'",
        ),
        ({"rank": 1, "roles": {"emb": "mmn"}}, r"emb: role 'mmn' does not fit shape \[10, 6\]"),
        ({"rank": 1, "roles": {"emb": "mm"}}, "at least one m and one n"),
        ({"rank": 1, "roles": {"*": "frozen"}}, "no parameter is left to evolve"),
        ({"rank": 1, "noise": "cauchy"}, "noise 'cauchy' is unknown"),
    ],
)
def test_bad_input_is_one_clear_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        describe(PARAMS, **options)
    assert "\n" not in str(caught.value)
