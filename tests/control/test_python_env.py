"""What a function of the user's is, found out where it can do no harm."""

from pathlib import Path

import pytest

from springroll.control.python_env import is_python, kind_of, python_environment
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
        (f"{OBJECTIVES}:hangs", "objective"),  # which is not called
        (f"{ENVIRONMENTS}:walk", "gymnasium"),
        (f"{ENVIRONMENTS}:ours", "environment"),
        ("gymnasium-Anything-v1", "gymnasium"),
        ("math:sqrt", "objective"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_9:f", "no module 'no_such_module_9' for the environment no_such"),
        (f"{ENVIRONMENTS}:absent", "has no function 'absent'"),
        (f"{ENVIRONMENTS}:raises", r"is no environment: it raised: RuntimeError: .*\(gymnasium_e"),
        (f"{ENVIRONMENTS}:dies", "is no environment: it crashed"),
        (f"{ENVIRONMENTS}:hangs", "is no environment: it took too long"),
        (f"{ENVIRONMENTS}:a_number", r"a_number\(\) returned something of type int; expected a fu"),
        (f"{OBJECTIVES}:takes_nothing", "returned something of type float; expected a function of"),
    ],
)
def test_what_is_neither_is_one_line(name, message):
    with pytest.raises(InputError, match=message) as error:
        kind_of(name, timeout=1.0)
    assert "\n" not in str(error.value)


def test_an_environment_of_ours():
    assert python_environment(f"{ENVIRONMENTS}:ours").name == "mine"
    with pytest.raises(InputError, match=r"walk\(\) returned Walk; expected an Environment"):
        python_environment(f"{ENVIRONMENTS}:walk")
