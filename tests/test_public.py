"""The public face: every name is there, costs nothing to import, and `sr.factored` is a function
and a package at once."""

import subprocess
import sys

import pytest

import springroll as sr


def ran(code):
    """What a fresh Python prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


@pytest.mark.parametrize("name", sr.__all__)
def test_every_name_is_there(name):
    assert getattr(sr, name) is not None
    assert name in dir(sr)


def test_no_other_name():
    with pytest.raises(AttributeError, match="no attribute 'factord'"):
        sr.factord  # noqa: B018


def test_importing_starts_nothing():
    assert ran("import springroll, sys; print('jax' in sys.modules)") == "False"
    started = "from jax._src import xla_bridge; print(xla_bridge._backends)"
    assert ran(f"import springroll as sr; sr.evaluate, sr.eggroll; {started}") == "{}"


USE = """
import jax.numpy as jnp
w = sr.Factored(jnp.ones((3, 2)), jnp.ones((3, 1)), jnp.ones((2, 1)))
print(sr.factored(lambda w, x: x @ w)(w, jnp.ones(3)))
print(module.discover.__module__, sr.factored is sys.modules["springroll.factored"])
"""
IMPORTS = {
    "the function first": """
import sys
import springroll as sr
sr.factored
import springroll.factored.discover as module
""",
    "the package first": """
import sys
import springroll.factored.discover as module
import springroll as sr
""",
    "by name": """
import sys
import springroll as sr
from springroll import factored
from springroll.factored import discover as module
assert sr.factored is factored
""",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_factored_is_a_function_and_a_package_whatever_came_first(order):
    assert ran(IMPORTS[order] + USE).splitlines() == [
        "[6. 6.]",
        "springroll.factored.discover True",
    ]


def test_arguments_and_errors_pass_through():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        sr.factored(lambda w: w, nothing=1)
