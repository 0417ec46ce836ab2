"""One walk over leaves with their paths, and sizes and norms beside NumPy's."""

import jax
import jax.numpy as jnp
import numpy as np

from springroll.trees import map_named, named_leaves, squared_norm, tree_bytes, tree_numbers

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
