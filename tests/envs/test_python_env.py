"""What a function of the user's is, found out where it can do no harm."""

import math
from pathlib import Path

import pytest

from springroll.envs.python_env import is_python, kind_of, python_environment
from springroll.envs.python_worker import kind_of_function
from springroll.errors import InputError

HERE = Path(__file__)
OBJECTIVES = HERE.with_name("objective_functions.py")
ENVIRONMENTS = HERE.with_name("gymnasium_environments.py")


def test_ids_are_told_from_code():
    names = {"mine:f": True, "a/mine.py:f": True, "gymnasium-CartPole-v1": True}
    names |= {"CartPole-v1": False, "gymnax::CartPole-v1": False, "brax/ant": False}
    assert {name: is_python(name) for name in names} == names


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{OBJECTIVES}:distance", "objective"),
        (f"{ENVIRONMENTS}:walk", "gymnasium"),
        (f"{ENVIRONMENTS}:ours", "environment"),
        ("gymnasium-Anything-v1", "gymnasium"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def test_what_must_be_given_weights_is_not_called_to_find_out():
    assert (
        kind_of_function("f", math.sqrt)
        == kind_of_function("f", lambda weights, seed=0: 1 / 0)
        == {"kind": "objective"}
    )
    assert kind_of_function("f", lambda scale=2.0: scale)["failed"][0] == "wrong"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_9:f", "no module 'no_such_module_9' for the environment no_such"),
        (f"{ENVIRONMENTS}:raises", r"is no environment: it raised RuntimeError: .*\(gymnasium_e"),
        (f"{ENVIRONMENTS}:dies", "is no environment: it crashed"),
        (f"{ENVIRONMENTS}:hangs", "is no environment: it took more than"),
        (f"{ENVIRONMENTS}:a_number", r"a_number\(\) returned something of type int; expected a fu"),
    ],
)
def test_what_is_neither_is_one_line(name, message):
    with pytest.raises(InputError, match=message) as error:
        kind_of(name, timeout=1.0 if name.endswith(":hangs") else 60.0)
    assert "\n" not in str(error.value)


def test_an_environment_of_ours():
    assert python_environment(f"{ENVIRONMENTS}:ours").name == "mine"
    with pytest.raises(InputError, match=r"walk\(\) returned Walk; expected an Environment"):
        python_environment(f"{ENVIRONMENTS}:walk")
