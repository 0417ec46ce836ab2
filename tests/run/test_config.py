"""Configs to and from JSON, and what a resumed run may change."""

import json
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.run.config import CHANGEABLE, RunConfig, from_json, resumed, run_id, to_json


@dataclass(frozen=True, kw_only=True)
class Noise:
    rank: int = 1
    pieces: int = field(default=1, metadata=CHANGEABLE)
    kind: Literal["gaussian", "rademacher"] = "gaussian"


@dataclass(frozen=True, kw_only=True)
class Example(RunConfig):
    sigma: float = 0.02
    noise: Noise = field(default_factory=Noise)
    exclude: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 2)
    cache: Path | None = None
    limit: int | str = 3
    weights: dict[str, float] = field(default_factory=dict)
    chunk: int = field(default=64, metadata=CHANGEABLE)


def through_json(config):
    return from_json(type(config), json.loads(json.dumps(to_json(config))))


def test_a_config_survives_json_with_every_kind_of_field():
    config = Example(
        noise=Noise(rank=4, kind="rademacher"),
        exclude=("head", "norm/*"),
        cache=Path("a/b"),
        limit="all",
        weights={"x": 1.5},
        seconds=90,
        generations=7,
    )
    assert through_json(config) == config
    assert isinstance(through_json(config).cache, Path)


@given(
    st.floats(0, 1e6, width=32, allow_subnormal=False),
    st.integers(0, 2**62),
    st.lists(st.text(max_size=5)),
    st.integers(1, 9),
)
def test_any_values_survive_json(sigma, seed, exclude, rank):
    config = Example(sigma=sigma, seed=seed, exclude=tuple(exclude), noise=Noise(rank=rank))
    assert through_json(config) == config


def test_missing_keys_take_their_defaults():
    assert from_json(Example, {"noise": {"rank": 2}}) == Example(noise=Noise(rank=2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sigam": 1.0}, "config: unknown key 'sigam'; did you mean 'sigma'?"),
        ({"noise": {"rnk": 4}}, "config.noise: unknown key 'rnk'; did you mean 'rank'?"),
        ({"zzzz": 4}, "config: unknown key 'zzzz'; known: out, seed"),
        ({"sigma": "high"}, "config.sigma: expected float, got 'high'"),
        ({"noise": {"rank": True}}, "config.noise.rank: expected int, got True"),
        ({"noise": {"rank": 1.5}}, "config.noise.rank: expected int, got 1.5"),
        ({"noise": {"kind": "cauchy"}}, "config.noise.kind: expected typing.Literal"),
        ({"noise": 3}, "config.noise: expected the fields of Noise, got 3"),
        ({"size": [1, 2, 3]}, "config.size: expected tuple[int, int], got [1, 2, 3]"),
        ({"exclude": ["a", 3]}, "config.exclude[1]: expected str, got 3"),
        ({"seconds": -1}, "seconds is -1.0; it must be a number of seconds, from 0 to 10^9"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"generations": -5}, "generations is -5; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must be between"),
    ],
)
def test_bad_configs_are_refused_in_one_line(data, message):
    with pytest.raises(InputError) as error:
        from_json(Example, data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_without_default_must_be_there():
    @dataclass(frozen=True, kw_only=True)
    class Needs:
        path: str

    with pytest.raises(InputError, match="config: the key 'path' is missing"):
        from_json(Needs, {})


def test_what_json_cannot_hold_is_a_bug_and_not_an_input_error():
    with pytest.raises(TypeError, match="a config cannot hold"):
        to_json(Example(weights={"x": object()}))  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="a config is a dataclass instance"):
        to_json(Example)


def test_a_resumed_run_may_get_another_budget_and_nothing_else():
    stored = Example(generations=10, sigma=0.5)
    given_now = Example(generations=20, resume=True, out="elsewhere", chunk=8)
    config = resumed(stored, given_now, Example())
    assert config == replace(stored, generations=20, resume=True, out="elsewhere", chunk=8)
    assert resumed(stored, replace(stored, seconds=3.0), Example()).seconds == 3.0
    with pytest.raises(InputError, match=r"sigma is 0\.3, but the run to resume has 0\.5"):
        resumed(stored, Example(sigma=0.3), Example())


def test_nested_fields_are_held_to_the_same(tmp_path):
    stored = Example(noise=Noise(rank=4))
    assert resumed(stored, Example(noise=Noise(pieces=7)), Example()).noise == Noise(
        rank=4, pieces=7
    )
    with pytest.raises(InputError, match=r"noise\.rank is 2, but the run to resume has 4"):
        resumed(stored, Example(noise=Noise(rank=2)), Example())
    assert run_id(stored) == run_id(Example(noise=Noise(rank=4, pieces=3)))


def test_the_run_id_names_what_is_computed():
    config = Example()
    assert run_id(config) == run_id(replace(config, seconds=5.0, out="x", chunk=3))
    assert run_id(config) != run_id(replace(config, seed=1))
    assert run_id(config) != run_id(replace(config, noise=Noise(rank=2)))


def test_the_rooms_of_the_command_line_import_no_jax():
    modules = ["config", "folder", "journal", "metrics", "progress", "clocks", "signals"]
    modules += ["curve", "task"]
    code = "; ".join(f"import springroll.run.{name}" for name in modules)
    code += "; import springroll.tasks.text, springroll.tasks.corpus, springroll.tasks.text"
    code += "; import springroll.atomic"
    code += "; import sys; print({'jax', 'matplotlib', 'tensorboardX'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
