"""What is not finite is never saved: the run stops and names it."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from springroll.errors import InputError
from springroll.run import session
from springroll.run.checkpoint import save, saved
from springroll.run.config import RunConfig
from springroll.run.finite import NotFinite, refuse_not_finite
from springroll.run.folder import RunFolder
from springroll.run.loop import run
from tests.run.toy import evaluate_memoryless, tell, toy

FLOATS = ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 1234, (1 << 18) - 1, 1 << 18, (1 << 18) + 77])
def test_one_number_anywhere_is_found(name, value, place):
    array = np.zeros((1 << 18) + 78, np.float64)
    array[place] = value
    with pytest.raises(NotFinite, match=r"^a/b is (NaN|infinite)$") as error:
        refuse_not_finite("a/b", array.astype(jnp.dtype(name)))
    assert error.value.value == ("NaN" if np.isnan(value) else "infinite")


@pytest.mark.parametrize("name", FLOATS)
def test_all_that_is_finite_passes(name):
    """Reference: NumPy's own look at all patterns of 16 bits, and at the ends of others."""
    dtype = jnp.dtype(name)
    limits = jnp.finfo(dtype)
    ends = [limits.max, limits.min, limits.tiny, limits.smallest_subnormal, 0.0, -0.0, 1.0]
    refuse_not_finite("x", np.array([float(x) for x in ends]).astype(dtype))
    if dtype.itemsize == 2:
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):  # signalling NaN
            finite = np.isfinite(every.astype(np.float32))
        refuse_not_finite("x", every[finite].reshape(2, -1))
        for pattern in every[~finite][::97]:
            with pytest.raises(NotFinite):
                refuse_not_finite("x", np.array(pattern))


def test_integers_words_of_keys_and_rare_floats_pass():
    for array in (
        np.full(3, -1),
        np.full(3, 0x7F80_0000, np.uint32),
        np.array([np.nan]).astype(jnp.float8_e4m3fn),
        np.array([True]),
        np.zeros((0, 3), np.float32),
    ):
        refuse_not_finite("x", array)


def test_a_refused_state_changes_no_file(tmp_path):
    good, bad = {"w": np.ones(3, np.float32)}, {"w": np.array([1, np.inf, 1], np.float32)}
    save(tmp_path, 1, good, {}, finite="w")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(NotFinite, match="w is infinite"):
        save(tmp_path, 2, bad, {}, finite="w")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    save(tmp_path, 2, bad, {}, finite="state/")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr(session, "draw_curve", lambda *_, **__: None)
    monkeypatch.setattr("springroll.run.metrics._board", lambda *_: None)


def train(path, task, generations=8):
    config = RunConfig(generations=generations, log_every=0.0)
    new = not (path / "config.json").exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    return run(config, task, folder, console=Console(file=io.StringIO()))


def breaking_at(generation, value: float = np.nan, /, **figures):
    """The toy, whose step breaks the weights while every fitness stays finite."""

    def breaks(state, members, fitness):
        at = int(state["generation"])
        state, told = tell(state, members, fitness)
        if at == generation:
            state = {**state, "weights": state["weights"].at[2].set(value)}
        return state, {**told, **figures}

    def blind(state, members, carry, batch):
        state = {**state, "weights": jnp.nan_to_num(state["weights"], posinf=0.0)}
        return evaluate_memoryless(state, members, carry, batch)

    return toy(carry=False, tell=breaks, evaluate=blind)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("share", [0.0, float("inf")])
def test_a_run_stops_at_weights_that_are_not_finite(tmp_path, monkeypatch, value, share):
    """Also where nothing was to be saved before the end."""
    monkeypatch.setattr(session, "SAVE_SHARE", share)
    at = r"generation \d+: state/weights is (NaN|infinite); stopped"
    with pytest.raises(InputError, match=at) as error:
        train(tmp_path, breaking_at(3, value))
    assert "are kept (" in str(error.value)
    for sidecar in saved(tmp_path / "checkpoints"):
        assert int(sidecar.stem) <= 3
    assert not (tmp_path / "summary.json").exists()
    with pytest.raises(InputError, match=at):  # the journal tells the same story again
        train(tmp_path, breaking_at(3, value))


def test_what_is_not_weights_may_be_anything(tmp_path):
    """Environments have bounds that are infinite; whoever has such a carry says what is guarded."""
    task = toy(carry=True)

    def init():
        state, carry = task.init()
        return state, {"memory": carry, "bound": jnp.float32(np.inf)}

    def evaluate(state, members, carry, batch):
        fitness, memory, figures = task.evaluate(state, members, carry["memory"], batch)
        return fitness, {**carry, "memory": memory}, figures

    assert train(tmp_path / "a", toy(init=init, evaluate=evaluate)).generation == 8
    stateless = {"tell": lambda state, members, fitness: (None, {}), "ask": lambda state: None}

    def learn(state, members, carry, batch):
        return np.zeros(8, np.float32), carry, {}

    def start():
        return None, {"w": jnp.float32(1), "bound": jnp.float32(np.inf)}

    options = stateless | {"init": start, "evaluate": learn, "validate": None}
    assert train(tmp_path / "b", toy(**options, guarded="carry/w")).generation == 8
    with pytest.raises(InputError, match="carry/bound is infinite"):
        train(tmp_path / "c", toy(**options))


@pytest.mark.parametrize("name", ["step_ratio", "grad_norm"])
def test_a_run_stops_where_no_step_is_finite(tmp_path, name):
    with pytest.raises(InputError, match=f"{name} is NaN or infinite; stopped"):
        train(tmp_path, breaking_at(-1, **{name: np.float32(np.inf)}))


def test_a_run_stops_at_a_step_that_replaces_the_weights(tmp_path):
    with pytest.raises(InputError, match=r"a step was 1e\+12 times as long as the weights"):
        train(tmp_path, breaking_at(-1, step_ratio=np.float32(1e12)))
    train(tmp_path / "b", breaking_at(-1, step_ratio=np.float32(1e5)))


def test_steps_lost_now_and_then_do_not_stop_a_run(tmp_path):
    def sometimes(state, members, fitness):
        at = int(state["generation"])
        state, told = tell(state, members, fitness)
        return state, {**told, "grad_norm": np.float32(np.nan if at % 3 else 1.0)}

    train(tmp_path, toy(tell=sometimes, lost_limit=3))
    with pytest.raises(InputError, match="grad_norm is NaN or infinite"):
        train(tmp_path / "b", toy(tell=sometimes, lost_limit=2))


def test_a_run_that_is_too_short_for_the_limit_does_not_end_well(tmp_path):
    """Ten lost steps stop a run; a run of four of which three were lost is no success either."""

    def lost(state, members, carry, batch):
        fitness, carry, figures = evaluate_memoryless(state, members, carry, batch)
        return fitness * np.float32(np.nan if state["generation"] >= 1 else 1), carry, figures

    with pytest.raises(InputError, match="the last generations had no finite fitness or step"):
        train(tmp_path, toy(carry=False, evaluate=lost, lost_limit=10), generations=4)
    assert [path.stem for path in saved(tmp_path / "checkpoints")][-1] == "000000004"


def test_generations_told_from_the_journal_count_as_lost(tmp_path, monkeypatch):
    """A run that is killed again and again cannot outlive the limit."""
    monkeypatch.setattr(session, "SAVE_SHARE", 0.0)

    def lost(state, members, carry, batch):
        fitness, carry, figures = evaluate_memoryless(state, members, carry, batch)
        if batch[0, 0] >= 6:
            raise KeyboardInterrupt
        return fitness * np.float32(np.nan if batch[0, 0] >= 2 else 1), carry, figures

    numbered = lambda generation: np.full((1, 5), generation, np.float32)
    task = toy(carry=False, evaluate=lost, batch=numbered, lost_limit=5)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, task)
    fifth = np.full((1, 5), 5, np.float32)
    again = lambda state, members, carry, _: lost(state, members, carry, fifth)
    limited = toy(carry=False, evaluate=again, lost_limit=5)
    with pytest.raises(InputError, match="generation 6: the fitness of all 8 members is NaN"):
        train(tmp_path, limited)
    about = json.loads(saved(tmp_path / "checkpoints")[-1].read_text())
    assert about["meta"]["lost_in_a_row"] == 0
