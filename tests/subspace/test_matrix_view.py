"""Which parameters are projected, and as which matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.errors import InputError
from springroll.subspace.matrix_view import matrix_views
from springroll.thin.discovery import discover


def shape(*dims):
    return jax.ShapeDtypeStruct(dims, jnp.float32)


PARAMS = {"experts": shape(2, 3, 8, 12), "head": shape(8, 4), "norm": shape(8)}


def views(params=PARAMS, **options):
    return {v.path: v for v in matrix_views(params, **options) if v}


def test_without_roles_the_last_two_axes_are_the_matrix():
    found = views()
    assert set(found) == {"experts", "head"}
    assert (found["experts"].roles, found["head"].roles) == ("ssmn", "mn")
    assert views(rows="out")["experts"].roles == "ssnm"
    assert [v.number for v in found.values()] == [0, 1]


def test_select():
    assert set(views(select="h*")) == set(views(select=["head"])) == {"head"}
    assert set(views(select=lambda path: path != "head" and path != "norm")) == {"experts"}
    assert not views(select=lambda path: False)


@pytest.mark.parametrize("roles", ["smn", "snm", "msn", "nms", "mmn", "nmm", "mns", "mn"])
def test_views_can_be_undone(roles):
    dims = (3, 4, 5)[: len(roles)]
    view = views({"w": shape(*dims)}, roles=fake_roles(roles, dims))["w"]
    x = jnp.arange(float(np.prod(dims))).reshape(dims)
    matrix = view.matrix(x)
    assert matrix.shape == (*view.stack, view.size("m"), view.size("n"))
    np.testing.assert_array_equal(view.restore(matrix), x)


def fake_roles(roles, dims):
    from springroll.thin.roles import WeightRole, WeightRoles

    return WeightRoles((WeightRole("w", dims, "float32", roles, "low-rank", "", ()),))


def test_roles_tell_inputs_from_outputs():
    """Attention heads as in Flax: (inputs, heads, head size); and torch's (out, in)."""
    params = {"q": shape(8, 2, 4), "o": shape(6, 8), "b": shape(6)}

    def fn(p, x):
        return jnp.einsum("bi,ihd->bhd", x, p["q"]).reshape(2, 8) @ p["o"].T + p["b"][None]

    roles = discover(fn, params, shape(2, 8))
    found = views(params, roles=roles)
    assert {path: v.roles for path, v in found.items()} == {"q": "mnn", "o": "nm"}
    assert found["q"].size("n") == 8 and found["o"].sides("in") == (True, False)


def test_one_layer_of_a_discovered_stack():
    roles = fake_roles("smn", (5, 8, 12))
    assert views({"w": shape(8, 12)}, roles=roles)["w"].roles == "mn"


@pytest.mark.parametrize(
    "roles, dims, sides",
    [
        ("mn", (4, 6), {"std": "in", "reverse_std": "out", "left": "in", "right": "out"}),
        ("mn", (6, 4), {"std": "out", "reverse_std": "in", "left": "in", "right": "out"}),
        ("nm", (6, 4), {"std": "in", "reverse_std": "out", "left": "out", "right": "in"}),
        ("nm", (5, 5), {"std": "in", "reverse_std": "out", "left": "out", "right": "in"}),
    ],
)
def test_sides(roles, dims, sides):
    view = views({"w": shape(*dims)}, roles=fake_roles(roles, dims))["w"]
    for side, projected in {**sides, "in": "in", "out": "out"}.items():
        assert view.sides(side) == (projected == "in", projected == "out"), side
    assert view.sides("full") == (True, True)


def test_one_line_for_what_cannot_be():
    cases = [
        (r"norm \[8\] is selected but has no matrix", dict(select=["norm"])),
        ("select pattern 'hed' matches no parameter; the nearest is 'head'", dict(select="hed")),
        (
            r"experts \[2, 3, 8, 12\] is not in the roles \(no such path\)",
            dict(roles=fake_roles("mn", (4, 4))),
        ),
        ("no parameter is projected", dict(params={"norm": shape(8)})),
    ]
    for message, options in cases:
        with pytest.raises(InputError, match=message) as error:
            views(**options)
        assert "\n" not in str(error.value)
