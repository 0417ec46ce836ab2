"""discover reads roles, dense, frozen and unused parameters off the program; explain shows them."""

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import rich.console
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from springroll.thin.discovery import SMALL, discover
from springroll.thin.report import explain, noise_numbers, table
from springroll.thin.roles import WeightRole, WeightRoles
from tests.thin.against_dense import check, weight

X = jnp.ones((2, 6))
IDS = jnp.zeros((2, 4), jnp.int32)


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def scan_layers(w, x):
    return lax.scan(lambda c, l: (jnp.tanh(c @ l), None), x, w)[0]


def ragged(w, x):
    return lax.ragged_dot(x, w, jnp.array([1, 1, 0]))


def conv(w, x):
    x = jnp.ones((1, 5, 5, 4))
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)


ROLES = {
    # name: function of (w, x), shape of w, roles
    "linear": (lambda w, x: x @ w, (6, 8), "mn"),
    "linear, outputs first": (lambda w, x: x @ w.T, (8, 6), "nm"),
    "attention in": (lambda w, x: jnp.einsum("bd,dhk->bhk", x, w), (6, 2, 5), "mnn"),
    "attention out": (
        lambda w, x: jnp.einsum("bhk,hkd->bd", x.reshape(2, 2, 3), w),
        (2, 3, 7),
        "mmn",
    ),
    "fused heads": (lambda w, x: (x @ w.reshape(6, 10)).sum(), (6, 2, 5), "mnn"),
    "experts": (lambda w, x: jnp.einsum("ebd,edf->ebf", jnp.stack([x] * 3), w), (3, 6, 5), "smn"),
    "ragged experts": (ragged, (3, 6, 5), "smn"),
    "scanned layers": (scan_layers, (3, 6, 6), "smn"),
    "unrolled layers": (lambda w, x: x @ w[0] @ w[1], (2, 6, 6), "smn"),
    "unpacked layers": (lambda w, x: sum(x @ layer for layer in w), (2, 6, 6), "smn"),
    "layers by index": (
        lambda w, x: lax.fori_loop(0, 2, lambda i, c: c @ w[i], x),
        (2, 6, 6),
        "smn",
    ),
    "loop constant": (lambda w, x: lax.fori_loop(0, 2, lambda i, c: c @ w, x), (6, 6), "mn"),
    "while": (lambda w, x: lax.while_loop(lambda c: c.sum() < 0, lambda c: c @ w, x), (6, 6), "mn"),
    "while condition": (
        lambda w, x: lax.while_loop(lambda c: (c @ w).sum() < 0, jnp.sin, x),
        (6, 7),
        "mn",
    ),
    "cond": (lambda w, x: lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x @ w * 2), (6, 8), "mn"),
    "remat": (jax.checkpoint(lambda w, x: x @ w), (6, 8), "mn"),
    "relu of": (lambda w, x: jax.nn.relu(x @ w), (6, 8), "mn"),
    "image kernel": (conv, (3, 3, 4, 5), "mmmn"),
    "embedding": (lambda w, x: w[IDS], (9, 6), "mn"),
    "one token": (lambda w, x: jnp.sin(w[IDS[0, 0]]), (9, 6), "mn"),
    "tied embedding": (lambda w, x: w[IDS] @ w.T, (9, 6), "mn"),
    "logits before lookup": (lambda w, x: (x @ w.T)[:, None, :1] + w[IDS], (9, 6), "nm"),
    "scaled per channel": (lambda w, x: x @ (w * jnp.ones((1, 8))), (6, 8), "mn"),
    "scaled per input": (lambda w, x: x @ (w / jnp.ones((6, 1))), (6, 8), "mn"),
    "fused": (lambda w, x: x @ jnp.concatenate([w, jnp.ones((6, 2))], 1), (6, 8), "mn"),
    "stacked by hand": (lambda w, x: jnp.einsum("bi,eij->ebj", x, jnp.stack([w, w])), (6, 8), "mn"),
    "split": (lambda w, x: jnp.tanh(x @ jnp.split(w, 2, 1)[0]), (6, 8), "mn"),
    "padded, tiled and reversed": (
        lambda w, x: x @ jnp.tile(jnp.pad(w, ((0, 0), (1, 1)))[:, ::-1], (1, 2)),
        (6, 8),
        "mn",
    ),
    "cast": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (6, 8), "mn"),
    "sum of everything": (lambda w, x: jnp.einsum("ij,ij->", w, jnp.ones((6, 8))), (6, 8), "mn"),
    "big positions": (lambda w, x: jnp.sin(jnp.ones((2, 80, 60)) + w[None]), (80, 60), "mn"),
}


@pytest.mark.parametrize("name", ROLES)
def test_roles(name):
    fn, sizes, roles = ROLES[name]
    (leaf,) = discover(lambda p, x: fn(p["w"], x), {"w": shape(*sizes)}, X).values()
    assert (leaf.path, leaf.shape, leaf.kind, leaf.roles) == ("w", sizes, "low-rank", roles)
    assert leaf.uses and leaf.reason == ""


def test_discovered_roles_run_without_densifying():
    for name in ("attention out", "tied embedding", "ragged experts", "logits before lookup"):
        fn, sizes, roles = ROLES[name]
        check(fn, weight(0, sizes, roles), X)


def tangled(p, x):
    """Everything that is not low-rank."""
    h = x @ p["w"] + p["bias"][None]
    h = h * p["heads"].reshape(8)[None]
    masked = jnp.where(p["masked"] > 0, p["masked"], 0.0)
    ids = (p["table"][0, 0] + p["flag"].sum()).astype(jnp.float32)
    _ = jnp.exp(p["unread"])
    return (h @ masked).sum() * p["temperature"] + ids + p["stack"][1].sum()


PARAMS = {
    "w": shape(6, 8),
    "bias": shape(8),
    "heads": shape(2, 4),
    "masked": shape(8, 9),
    "table": shape(3, 3, dtype=jnp.int32),
    "unread": shape(7, 7),
    "temperature": shape(),
    "stack": shape(3, 8),
    "flag": shape(4, dtype=jnp.bool_),
}


def test_what_is_not_low_rank_says_why():
    roles = discover(tangled, PARAMS, X)
    assert {path: leaf.kind for path, leaf in roles.items()} == {
        "w": "low-rank",
        "bias": "dense",
        "heads": "dense",
        "masked": "dense",
        "table": "frozen",
        "unread": "unused",
        "temperature": "dense",
        "stack": "dense",
        "flag": "frozen",
    }
    assert "consumed by 'gt' at" in roles["masked"].reason
    assert Path(__file__).name in roles["masked"].reason
    assert "elementwise" in roles["heads"].reason or "vector" in roles["heads"].reason
    assert "vector" in roles["bias"].reason
    assert "no output depends" in roles["unread"].reason
    assert "int32" in roles["table"].reason
    assert all(leaf.roles is None for leaf in roles.values() if leaf.kind != "low-rank")


def test_small_weights_that_are_only_added_count_as_biases():
    def add(p, x):
        return jnp.sin(jnp.ones((2, *p.shape)) + p[None])

    assert discover(add, shape(2, SMALL // 2), X).leaves[0].kind == "dense"
    assert discover(add, shape(3, SMALL // 2), X).leaves[0].kind == "low-rank"


def test_a_use_that_fails_gives_way_to_one_that_works():
    """The first use proposes mnn, but a later merge of the first two axes needs mmn."""

    def fn(w, x):
        return jnp.einsum("bd,dhk->bhk", x, w).sum() + (jnp.ones((2, 12)) @ w.reshape(12, 5)).sum()

    (leaf,) = discover(fn, shape(6, 2, 5), X).values()
    assert (leaf.kind, leaf.roles) == ("low-rank", "mmn")


def test_integer_weights_are_planned_on_the_lattice():
    x = jnp.ones((2, 6), jnp.int8)

    def fn(p, x):
        y = jnp.matmul(x, p["w"], preferred_element_type=jnp.int32)
        return jnp.matmul(y, p["scaled"].astype(jnp.int32) * 2) + p["wide"].sum()

    params = {
        "w": shape(6, 8, dtype=jnp.int8),
        "scaled": shape(8, 9, dtype=jnp.int8),
        "wide": shape(4, 4, dtype=jnp.int32),
    }
    roles = discover(fn, params, x)
    assert [leaf.kind for leaf in roles.values()] == ["dense", "low-rank", "frozen"]
    assert roles["w"].dtype == "int8"


def test_shard_map_is_walked():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,))
    split = {"mesh": mesh, "in_specs": (P("d", None), P(None, "d")), "out_specs": P()}
    fn = jax.shard_map(lambda w, x: lax.psum(x @ w, "d"), **split)
    assert discover(fn, shape(6, 8), X).leaves[0].roles == "mn"


def test_nothing_is_computed_and_values_do_not_matter():
    big = shape(200_000, 100_000)
    (leaf,) = discover(lambda w, x: x @ w, big, shape(3, 200_000)).values()
    assert leaf.roles == "mn"


def test_static_arguments_and_keywords():
    def fn(p, x, mode, *, depth):
        for _ in range(depth):
            x = x @ p["w"]
        return x if mode == "plain" else None

    assert discover(fn, {"w": shape(6, 6)}, X, "plain", depth=2)["w"].roles == "mn"


def test_roles_are_a_hashable_mapping():
    params = {"a": {"b": shape(6, 8)}, "c": [shape(8)]}
    fn = lambda p, x: x @ p["a"]["b"] + p["c"][0][None]
    roles, again = discover(fn, params, X), discover(fn, params, X)
    assert list(roles) == ["a/b", "c/0"] and len(roles) == 2
    assert hash(roles) == hash(again) and roles == again
    assert {roles: 1}[again] == 1
    assert jax.jit(lambda x, roles: x, static_argnums=1)(1.0, roles) == 1.0
    with pytest.raises(KeyError):
        roles["missing"]


def test_explain_is_a_table_of_everything():
    console = rich.console.Console(width=200, record=True, file=io.StringIO())
    console.print(explain(tangled, PARAMS, X))
    text = console.export_text()
    for path, leaf in discover(tangled, PARAMS, X).items():
        assert path in text and leaf.kind in text
    assert "float32[8,9]" in text and "consumed by 'gt' at" in text
    assert "9 parameters" in text


def test_noise_is_counted_per_member():
    leaf = WeightRole("w", (3, 6, 8), "float32", "smn", "low-rank", "", ())
    assert noise_numbers(leaf) == 3 * 6 + 3 * 8
    assert noise_numbers(leaf, rank=2) == 2 * noise_numbers(leaf)
    dense = WeightRole("b", (3, 8), "float32", None, "dense", "", ())
    frozen = WeightRole("f", (3, 8), "int32", None, "frozen", "", ())
    assert noise_numbers(dense) == 24 and noise_numbers(frozen) == 0
    caption = table(WeightRoles((leaf, dense, frozen))).caption
    assert caption == "3 parameters, 192 numbers; 66 random numbers per member"
