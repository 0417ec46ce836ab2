"""The public face: every name is there, is what it says, and costs nothing to import."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import springroll as sr


def ran(code):
    """What a fresh Python prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


NAMES = [name for name in sr.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name):
    assert getattr(sr, name) is not None
    assert name in dir(sr)


def test_no_other_name():
    with pytest.raises(AttributeError, match="factord"):
        getattr(sr, "factord")  # noqa: B009


def test_importing_starts_nothing():
    assert ran("import springroll, sys; print('jax' in sys.modules)") == "False"
    started = "from jax._src import xla_bridge; print(xla_bridge._backends)"
    assert ran(f"import springroll as sr; sr.evaluate, sr.eggroll; {started}") == "{}"


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_a_plain_function_or_class(name):
    """It has a signature and a docstring; `copy`, `pickle` and `help` treat it as one."""
    value = getattr(sr, name)
    assert inspect.isfunction(value) or inspect.isclass(value)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        parameters = inspect.signature(value).parameters.values()
        assert any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
    assert copy.copy(value) is copy.deepcopy(value) is pickle.loads(pickle.dumps(value)) is value


def test_arguments_and_errors_pass_through():
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        sr.factored(lambda w: w, nothing=1)  # pyright: ignore[reportCallIssue]
