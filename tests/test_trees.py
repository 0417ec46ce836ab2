"""One walk over leaves with their paths, and sizes and norms beside NumPy's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from springroll.trees import (
    map_named,
    named_leaves,
    squared_norm,
    tree_bytes,
    tree_dataclass,
    tree_numbers,
)

TREE = {"mlp": [jnp.ones((2, 3)), jnp.full(4, 2, jnp.bfloat16)], "bias": jnp.zeros(())}


def test_leaves_by_their_paths():
    named = named_leaves(TREE)
    assert list(named) == ["bias", "mlp/0", "mlp/1"]
    assert all(a is b for a, b in zip(named.values(), jax.tree.leaves(TREE), strict=True))


def test_a_map_that_knows_the_path():
    doubled = map_named(lambda path, x, y: (path, x + y), TREE, TREE)
    assert doubled["mlp"][1][0] == "mlp/1"
    np.testing.assert_array_equal(doubled["mlp"][0][1], 2.0)


def test_sizes():
    assert tree_bytes(TREE) == 4 * 6 + 2 * 4 + 4
    assert tree_numbers(jax.eval_shape(lambda: TREE)) == 11


def test_the_squared_norm_is_that_of_all_numbers():
    assert float(squared_norm(TREE)) == 6 + 16
    assert float(squared_norm({})) == 0


@tree_dataclass(static=["unit"], saved_as={"length": "size"})
@dataclasses.dataclass(frozen=True)
class Stick:
    length: np.ndarray | np.float32
    ends: dict
    unit: str


def test_a_tree_dataclass_is_a_pytree_with_the_paths_that_are_saved():
    stick = Stick(np.float32(2), {"left": np.int32(1)}, "m")
    assert list(named_leaves(stick)) == ["size", "ends/left"]
    twice = jax.tree.map(lambda x: 2 * x, stick)
    assert (float(twice.length), int(twice.ends["left"]), twice.unit) == (4, 2, "m")
    assert jax.tree.structure(stick) == jax.tree.structure(twice)
    other = dataclasses.replace(stick, unit="s")
    assert jax.tree.structure(stick) != jax.tree.structure(other)
    out = jax.jit(lambda s: dataclasses.replace(s, length=s.length + 1))(stick)
    assert isinstance(out, Stick) and float(out.length) == 3
