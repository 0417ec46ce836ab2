"""What the field of an option declares: ranges, former names, memory."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from springroll.errors import InputError
from springroll.finetune.config import FinetuneConfig
from springroll.pretrain.config import PretrainConfig
from springroll.rl.config import PPOSettings, RLConfig, factor_of, half_life_of
from springroll.run.config import from_json
from springroll.run.options import (
    CHANGEABLE,
    COUNT,
    PAIRS,
    POSITIVE,
    FormerName,
    Range,
    accepts_former_names,
    check_ranges,
    option,
    renamed_options,
)
from springroll.train.config import TrainConfig

CONFIGS = (PretrainConfig, TrainConfig, FinetuneConfig, RLConfig, PPOSettings)
NUMBERS = [
    (kind, field)
    for kind in CONFIGS
    for field in dataclasses.fields(kind)
    if "int" in str(field.type) or "float" in str(field.type)
    if "Literal" not in str(field.type)
]


@accepts_former_names
@dataclass(frozen=True, kw_only=True)
class Options:
    size: int = option(2, PAIRS, formerly="members")
    rate: float | None = option(None, POSITIVE, formerly=FormerName("slowness", lambda x: 1 / x))
    room: str | None = option(None, memory=True, changeable=True)
    plain: float = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)


@pytest.mark.parametrize(("kind", "field"), NUMBERS, ids=lambda x: getattr(x, "name", None))
def test_every_number_of_every_command_has_a_range(kind, field):
    prefix = "ppo." if kind is PPOSettings else ""
    assert isinstance(field.metadata.get("range"), Range), "declare it: option(1, COUNT)"
    for bad in (math.nan, math.inf, -math.inf, -1e18):
        if bad == -1e18 and "half_life" in field.name and kind is RLConfig:
            continue  # a negative half-life is a growth
        options: dict[str, Any] = {field.name: bad}
        with pytest.raises(InputError, match=re.escape(f"{prefix}{field.name} is {bad};")):
            kind(**options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": 3}, "size is 3; members come in pairs: an even number, 2 or more"),
        ({"size": 0}, "size is 0; members come in pairs"),
        ({"rate": 0.0}, "rate is 0.0; it must be above 0"),
        ({"rate": math.nan}, "rate is nan; it must be above 0"),
        ({"plain": math.inf}, "plain is inf; it must be a finite number"),
        ({"room": "much"}, "room is 'much'; expected a number and a unit, such as 24GiB"),
    ],
)
def test_what_is_out_of_range_is_one_line(given, message):
    with pytest.raises(InputError) as error:
        Options(**given)
    assert message in str(error.value)


def test_ranges_say_what_they_are():
    assert 1 in COUNT and 0 not in COUNT and math.nan not in COUNT
    assert 4 in PAIRS and 5 not in PAIRS
    assert str(Range(other_than=0)) == "it must not be 0" and 0 not in Range(other_than=0)
    assert str(Range(at_least=2, below=3)) == "it must be from 2 to below 3"


def test_former_names_in_json_and_in_python():
    today = Options(size=4, rate=0.25)
    assert from_json(Options, {"members": 4, "slowness": 4.0}) == today
    assert from_json(Options, {"members": 4, "slowness": None}) == Options(size=4)
    with pytest.warns(DeprecationWarning, match="'members' of Options is now 'size'"):
        assert Options(members=4, rate=0.25) == today  # pyright: ignore[reportCallIssue]
    with pytest.warns(DeprecationWarning, match="'members' of Options is now 'size'"):
        assert dataclasses.replace(today, members=6).size == 6
    notes = renamed_options(Options, {"members": 4, "slowness": 4.0, "plain": 1.0})[1]
    assert notes == ["members is now called size", "slowness 4.0 is now called rate 0.25"]
    with pytest.raises(InputError, match="slowness is 'x'; expected a number"):
        from_json(Options, {"slowness": "x"})
    with pytest.raises(InputError, match="unknown key 'membres'"):
        from_json(Options, {"membres": 4})


def test_a_field_says_whether_it_may_change():
    fields = {field.name: field.metadata for field in dataclasses.fields(Options)}
    assert fields["room"].items() >= CHANGEABLE.items()
    assert not fields["size"].get("changeable")


@given(st.floats(1e-3, 1e3))
@example(0.9995)
@example(1 - 2**-53)
@example(1 + 2**-52)
def test_a_factor_and_its_half_life_are_the_same_float32(factor):
    half_life = half_life_of(factor)
    if factor == 1:
        assert half_life is None
    else:
        assert half_life is not None
        assert np.float32(factor_of(half_life)) == np.float32(factor)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_no_factor_has_no_half_life(factor):
    with pytest.raises(InputError, match=r"a factor per generation is .*; it must be above 0"):
        half_life_of(factor)


def test_a_factor_that_cannot_be_is_refused_for_what_is_wrong_with_it():
    with pytest.raises(InputError, match=r"lr_decay: a factor per generation is 0\.0; it must be"):
        renamed_options(RLConfig, {"lr_decay": 0})
