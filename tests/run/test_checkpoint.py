"""Checkpoints: equal bytes for equal states, damage noticed, strangers refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors import safe_open

from springroll.errors import InputError
from springroll.run import checkpoint
from springroll.run.checkpoint import Damaged, differing_paths, load, load_newest, save, saved


def state(scale=1.0):
    return {
        "params": {
            "blocks": {
                "w": jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4) * jnp.float32(scale)
            },
            "embed": jnp.arange(-4, 4, dtype=jnp.int8),
        },
        "half": jnp.array([1.5, -0.0, jnp.inf, jnp.nan], jnp.bfloat16),
        "key": jax.random.key(3),
        "step": jnp.int32(7),
    }


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert differing_paths(left, right) == []
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert type(a) is type(b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
        assert np.shape(a) == np.shape(b)


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_state_comes_back_bit_for_bit(tmp_path):
    sidecar = save(tmp_path, 12, state(), {"seconds": 1.25, "note": "ä"})
    loaded = load(sidecar, state(scale=0.0))
    assert_same(loaded.tree, state())
    assert loaded.generation == 12
    assert loaded.meta == {"seconds": 1.25, "note": "ä"}
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "000000012.json",
        "000000012.safetensors",
    ]


def test_every_kind_of_leaf_comes_back_as_what_it_was(tmp_path):
    tree = {
        "int4": jnp.array([-8, 7, 1], jnp.int4),
        "float8": jnp.array([1.5, 2.0], jnp.float8_e4m3fn),
        "float8_rare": jnp.array([1.5, 2.0], jnp.float8_e4m3b11fnuz),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "numpy": np.arange(3, dtype=np.float64),
        "numpy_scalar": np.float32(2.5),
        "python": [3, 2.5, True],
        "none": None,
        "keys": jax.random.split(jax.random.key(0), 3),
        "rbg": jax.random.key(1, impl="rbg"),
        "strided": np.arange(12).reshape(3, 4).T[::2],
        "tuple": (jnp.float16(1), jnp.uint32(2)),
    }
    loaded = load(save(tmp_path, 0, tree, {}), tree)
    assert_same(loaded.tree, tree)
    assert jax.random.key_impl(loaded.tree["rbg"]) == jax.random.key_impl(tree["rbg"])


def test_equal_states_give_equal_files_whatever_the_meta(tmp_path):
    save(tmp_path / "a", 3, state(), {"seconds": 1})
    save(tmp_path / "b", 3, state(), {"seconds": 2})
    name = "000000003.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_safetensors_package_reads_the_file(tmp_path):
    """Reference: the format's own reader sees the names, shapes and values."""
    save(tmp_path, 0, state(), {})
    with safe_open(tmp_path / "000000000.safetensors", "numpy") as file:
        assert set(file.keys()) == {"params/blocks/w", "params/embed", "half", "key", "step"}
        np.testing.assert_array_equal(
            file.get_tensor("params/blocks/w"), state()["params"]["blocks"]["w"]
        )
        np.testing.assert_array_equal(file.get_tensor("params/embed"), state()["params"]["embed"])
        np.testing.assert_array_equal(file.get_tensor("key"), jax.random.key_data(state()["key"]))
        assert file.get_slice("half").get_dtype() == "BF16"


def test_the_newest_few_are_kept(tmp_path):
    for generation in range(5):
        save(tmp_path, generation, state(generation), {})
    assert [path.stem for path in saved(tmp_path)] == ["000000003", "000000004"]
    assert len(list(tmp_path.iterdir())) == 4
    loaded, notes = load_newest(tmp_path, state())
    assert loaded and loaded.generation == 4 and notes == []
    assert_same(loaded.tree, state(4))


def test_saving_a_generation_again_replaces_it(tmp_path):
    save(tmp_path, 1, state(1), {})
    save(tmp_path, 1, state(2), {})
    assert_same(load(saved(tmp_path)[0], state()).tree, state(2))


def test_any_flipped_byte_is_noticed_and_the_older_one_serves(tmp_path):
    save(tmp_path, 1, state(1), {})
    newest = save(tmp_path, 2, state(2), {}).with_suffix(".safetensors")
    whole = newest.read_bytes()
    for offset in range(0, len(whole), 7):
        flip(newest, offset)
        loaded, notes = load_newest(tmp_path, state())
        assert loaded and loaded.generation == 1
        assert notes == [
            f"{newest} is damaged: its checksum does not hold; "
            f"falling back to the checkpoint before it"
        ]
        newest.write_bytes(whole)
    assert load_newest(tmp_path, state())[0].generation == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_torn_file_is_noticed(tmp_path, size):
    sidecar = save(tmp_path, 1, state(), {})
    tensors = sidecar.with_suffix(".safetensors")
    tensors.write_bytes(tensors.read_bytes()[:size])
    with pytest.raises(Damaged, match="checksum does not hold"):
        load(sidecar, state())


def test_a_missing_or_meaningless_part_is_noticed(tmp_path):
    sidecar = save(tmp_path, 1, state(), {})
    for content in ("", "{", "[]", "{}", json.dumps({"format": checkpoint.FORMAT})):
        sidecar.write_text(content)
        with pytest.raises(Damaged):
            load(sidecar, state())
    save(tmp_path, 1, state(), {}).with_suffix(".safetensors").unlink()
    loaded, notes = load_newest(tmp_path, state())
    assert loaded is None
    assert "cannot read" in notes[0] and "\n" not in notes[0]


def test_tensors_without_their_json_do_not_count(tmp_path):
    """Killed between the two renames: the checkpoint does not exist yet."""
    save(tmp_path, 1, state(1), {})
    save(tmp_path, 2, state(2), {}).unlink()
    loaded, notes = load_newest(tmp_path, state())
    assert loaded and loaded.generation == 1 and notes == []


def test_what_was_left_by_a_kill_is_cleared_away(tmp_path):
    save(tmp_path, 1, state(1), {}).unlink()
    (tmp_path / "000000002.safetensors.tmp").write_bytes(b"half")
    save(tmp_path, 3, state(3), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "000000003.json",
        "000000003.safetensors",
    ]


def test_checkpoints_later_than_asked_are_passed_over(tmp_path):
    save(tmp_path, 4, state(4), {})
    save(tmp_path, 6, state(6), {})
    loaded, notes = load_newest(tmp_path, state(), at_most=5)
    assert loaded and loaded.generation == 4
    assert "000000006.json, which is later than generation 5" in notes[0]


def test_an_empty_folder_has_none(tmp_path):
    assert load_newest(tmp_path / "none", state()) == (None, [])


def other(**changes):
    tree = state()
    tree["params"] = {**tree["params"], **changes}
    return tree


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (other(embed=jnp.zeros(9, jnp.int8)), "params/embed is int8[8] there and int8[9] here"),
        (other(embed=jnp.zeros(8)), "params/embed is int8[8] there and float32[8] here"),
        (other(extra=jnp.zeros(2)), "params/extra is missing there and float32[2] here"),
        (other(blocks={}), "params/blocks/w is float32[2,3,4] there and absent here"),
        (
            state() | {"key": jax.random.key(0, impl="rbg")},
            "key is key<threefry2x32>[2] there and key<rbg>[4] here",
        ),
    ],
)
def test_another_architecture_is_refused_by_its_first_differing_path(tmp_path, template, message):
    save(tmp_path, 1, state(), {})
    with pytest.raises(InputError) as error:
        load_newest(tmp_path, template)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_can_be_read_alone_and_from_shapes(tmp_path):
    sidecar = save(tmp_path, 1, {"state": state(), "carry": jnp.zeros(1000)}, {})
    shapes = jax.eval_shape(state)
    assert_same(load(sidecar, shapes, prefix="state").tree, state())
    weights = load(sidecar, shapes["params"], prefix="state/params").tree
    assert_same(weights, state()["params"])
    half = load(sidecar, shapes["half"], prefix="state/half").tree
    assert_same(half, state()["half"])
    with pytest.raises(InputError, match="state/half is bfloat16"):
        load(sidecar, {k: v for k, v in shapes.items() if k != "half"}, prefix="state")


def test_placement_follows_the_template(tmp_path):
    mesh = Mesh(np.array(jax.devices()), ("pop",))
    split = NamedSharding(mesh, P("pop"))
    tree = {
        "split": jax.device_put(jnp.arange(8), split),
        "there": jax.device_put(jnp.arange(3), jax.devices()[2]),
        "free": jnp.arange(3),
        "keys": jax.device_put(jax.random.split(jax.random.key(0), 8), split),
    }
    loaded = load(save(tmp_path, 0, tree, {}), tree).tree
    assert_same(loaded, tree)
    for name in tree:
        assert loaded[name].sharding.is_equivalent_to(tree[name].sharding, 1)
        assert loaded[name].committed == tree[name].committed


def test_differing_paths_are_named_even_where_values_compare_equal():
    left = {"a": jnp.float32(0.0), "b": jnp.array([jnp.nan, 1]), "k": jax.random.key(0)}
    right = {"a": jnp.float32(-0.0), "b": jnp.array([jnp.nan, 1]), "k": jax.random.key(1)}
    assert differing_paths(left, right) == ["a", "k"]


def test_two_leaves_of_one_path_are_our_own_bug(tmp_path):
    with pytest.raises(TypeError, match="share one path"):
        save(tmp_path, 0, {"a/b": jnp.zeros(1), "a": {"b": jnp.zeros(1)}}, {})
    assert list(tmp_path.iterdir()) == []
