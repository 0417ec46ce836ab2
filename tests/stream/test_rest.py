"""Embedding and head come when they are read, and their gradients leave in parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.errors import InputError
from springroll.models import cross_entropy
from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.models.packed import Packed
from springroll.planner.working_set import INDEX, arguments
from springroll.stream import table_rows
from springroll.stream.clipping import Clip
from springroll.stream.device_update import DeviceUpdate
from springroll.stream.rest_pieces import pieces
from springroll.stream.step_programs import StepPrograms
from springroll.stream.table_rows import TableRows
from tests.compiling import quick_jit
from tests.stream.streaming import adam, distance, model, started, streamed, tokens, whole

WIDE = llama(32, 32, 2, 1, vocab=1 << 14)  # a vocabulary that outweighs all else


@pytest.fixture
def in_parts(monkeypatch):
    """Every table is a large one; 20 of its rows come together."""
    monkeypatch.setattr(table_rows, "LEAST", 0)
    monkeypatch.setattr(table_rows, "TOGETHER", 20 * model().config.hidden)


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("host", {"parts": 2, "clip": Clip(0.5)}),
        pytest.param("host", {"parts": 2}, marks=pytest.mark.slow),
        pytest.param("device", {"clip": Clip(0.5)}, marks=pytest.mark.slow),
        pytest.param("device", {"parts": 2, "depth": 1}, marks=pytest.mark.slow),
    ],
)
def test_tables_in_parts_learn_what_the_whole_model_does(in_parts, where, options):
    clip = options.get("clip", Clip()).limit
    optimizer = adam() if clip is None else optax.chain(optax.clip_by_global_norm(clip), adam())
    params, expected = whole(model(), 2, optimizer)
    trainer, state = streamed(model(), where, **options)
    for i, (loss, norm) in enumerate(expected):
        state, metrics = trainer.step(state, tokens(i))
        np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)
        np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-5)
    assert distance(state.params, params) < 1e-5 * distance(params, started(model()))


def test_rows_are_those_that_tokens_name_and_places_find_them(monkeypatch):
    monkeypatch.setattr(table_rows, "TOGETHER", 2 * 4)
    batches = [np.array([[7, 1, 5, 99]]), np.array([[1, -1, 30, 99]])]  # the last is predicted only
    rows, table = TableRows(batches, 9, 4), np.arange(36.0, dtype=np.float32).reshape(9, 4)
    assert rows.rows.tolist() == [1, 5, 7, 8] and (rows.times, rows.size) == (3, 2)
    looked_up = lambda table, batch: np.asarray(jnp.take(table, batch[:, :-1], axis=0))
    for batch, given in zip(rows.batches(), batches, strict=True):
        found = looked_up(rows.gathered(table), batch)
        np.testing.assert_array_equal(found, looked_up(table, given))  # 30 is NaN in both
    second = rows.batches(1)
    assert rows.of(1).tolist() == [7, 8] and rows.of(2).tolist() == []
    assert [b[:, :-1].tolist() for b in second] == [[[0, 2, 2]], [[2, 1, 2]]]  # 2: not among them
    packed = Packed(np.array([[3, 0]]), np.array([[0, -1]]), np.zeros((1, 2)), np.ones(1))
    (found,) = TableRows([packed], 9, 4).batches()
    assert found.tokens.tolist() == [[1, 0]] and found.targets is packed.targets
    narrow = np.array([[255, 7, 0]], np.uint8)  # 256 is no number of theirs
    assert TableRows([narrow], 256, 4).rows.tolist() == [7, 255]


def test_slices_of_the_head_are_its_gradient_to_the_bit(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 1 << 10})
    rng = np.random.default_rng(0)
    x, head = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 4, 8), (300, 8)))
    targets = jnp.asarray(rng.integers(-1, 300, (2, 4)), jnp.int32)
    size = cross_entropy.slice_rows(300, 8)
    zeros = cross_entropy.HeadInputs(jnp.zeros_like(x), jnp.zeros((2, 4)), jnp.zeros((2, 4)))
    loss = lambda x, head: cross_entropy.cross_entropy(x, head, targets)
    apart = lambda x, inputs: loss(x, cross_entropy.HeadApart(head, inputs))
    dx, expected = quick_jit(jax.grad(loss, (0, 1)))(x, head)
    dx_apart, inputs = quick_jit(jax.grad(apart, (0, 1)))(x, zeros)
    part_of = quick_jit(cross_entropy.head_gradient, static_argnums=0)
    np.testing.assert_array_equal(dx, dx_apart)
    found = np.zeros_like(expected)
    for i, begin in enumerate(range(0, 300, size)):
        part = part_of(size, head, targets, inputs, jnp.int32(i))
        count = min(size, 300 - begin)
        found[begin : begin + count] = part[-count:]
    assert -(-300 // size) > 1
    np.testing.assert_array_equal(found, expected)


def test_no_program_of_a_large_vocabulary_has_its_gradient_as_a_whole(monkeypatch):
    """What compiled programs take beside their arguments, as a share of a float32 table."""
    monkeypatch.setattr(cross_entropy, "CHUNK", {"cpu": 1 << 12})
    programs, given = StepPrograms(decoder(WIDE), parts=2), arguments(WIDE, 2, 8, "float32")
    head = (given.rest, None, given.x, [given.stats], given.tokens, None)
    size = table_rows.head_rows((WIDE.vocab, WIDE.hidden), 16)
    inputs = jax.eval_shape(functools.partial(programs._finish_apart, name="lm_head"), *head)[-1]
    rows = {"embed_tokens": jax.ShapeDtypeStruct((16, WIDE.hidden), jnp.float32)}

    def share(program, *args, static=()):
        analysis = (
            quick_jit(program, static_argnums=static).lower(*args).compile().memory_analysis()
        )
        assert analysis is not None
        taken = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
        return taken / (4 * WIDE.vocab * WIDE.hidden)

    assert share(programs._finish, *head) > 1
    assert share(programs._finish_apart, *head, "lm_head", static=6) < 1 / 8
    weight = given.rest["lm_head"]
    slice_of = (weight, given.tokens, inputs, INDEX, None, size)
    assert share(programs._head_slice, *slice_of, static=5) < 1 / 8
    assert share(programs._embed_backward, rows, None, given.tokens, given.x, None) < 1 / 8


def test_an_optimizer_that_knows_the_whole_tree_updates_it_whole(monkeypatch):
    monkeypatch.setattr(table_rows, "LEAST", 0)
    shapes = {name: jax.ShapeDtypeStruct((8, 4), jnp.float32) for name in ("embed", "head")}
    masked = optax.masked(optax.adam(1.0), {"embed": True, "head": False})
    cut = lambda optimizer: pieces(optimizer, shapes, jax.eval_shape(optimizer.init, shapes))
    assert [piece.state for piece in cut(optax.adam(1.0))] == [[0, 1, 3], [0, 2, 4]]
    assert cut(masked) == []


def test_an_optimizer_with_a_random_key_is_refused():
    noisy = DeviceUpdate(optax.chain(optax.adam(1e-2), optax.add_noise(0.1, 0.5, 0)))
    with pytest.raises(InputError, match=r"keeps a random key in its state .*optax\.add_noise"):
        noisy.init({"w": jnp.ones((2, 3))}, True)


def test_tied_tables_come_whole():
    tied = decoder(dataclasses.replace(WIDE, tied=True))
    assert tied.sliced_head is None and decoder(WIDE).sliced_head == "lm_head"
