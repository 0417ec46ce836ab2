"""`springroll explain`: built-in models, functions by name, and what is neither."""

import sys

import jax
import jax.numpy as jnp
import pytest

from springroll.cli.main import main


def linear():
    """A function and its parameters, as `explain` wants them."""
    params = {"weight": jnp.ones((4, 3)), "bias": jnp.ones(3)}
    return lambda p, x: jnp.sum(x @ p["weight"] + p["bias"][None]), params, jnp.ones((2, 4))


def abstract():
    """The same without a number."""
    fn, *arrays = linear()
    return fn, *jax.eval_shape(lambda *a: a, *arrays)


def broken():
    return 3


def needs_more(size):
    return size


def misnamed():
    return (lambda params: params["absent"]), {"weight": 1.0}


@pytest.fixture(autouse=True)
def _named(monkeypatch):
    monkeypatch.setitem(sys.modules, "house", sys.modules[__name__])


def test_the_built_in_model(capsys):
    assert main("explain egg --n-layers 2 --hidden 16".split()) == 0
    shown = capsys.readouterr().out
    assert "int8[2,64,16]" in shown and "snm" in shown
    assert f"13 parameters, {513 * 16 + 2 * (4 * 16 + 12 * 16**2):,} numbers" in shown


@pytest.mark.parametrize("name", ["linear", "abstract"])
def test_a_function_by_name(capsys, name):
    assert main(["explain", f"house:{name}"]) == 0
    shown = capsys.readouterr().out
    assert "weight" in shown and "float32[4,3]" in shown and "mn" in shown
    assert "test_explain.py" in shown


def test_a_module_in_the_current_folder(capsys, tmp_path, monkeypatch):
    (tmp_path / "my_model_17.py").write_text("from tests.cli.test_explain import linear\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["explain", "my_model_17:linear"]) == 0
    assert "float32[4,3]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("eg", "eg is no model, run folder or MODULE:FUNCTION; did you mean egg?; models: egg"),
        ("nothing_here:f", "no module 'nothing_here' for the function nothing_here:f"),
        ("house:liner", "house has no function 'liner'; did you mean 'linear'?"),
        ("house:broken", "house:broken returned int; expected a tuple (fn, params, *args)"),
        ("house:needs_more", "house:needs_more raised TypeError: needs_more() missing 1 required"),
        ("house:misnamed", "the fn that house:misnamed returned raised KeyError: 'absent'"),
    ],
)
def test_what_cannot_be_explained(capsys, target, message):
    assert main(["explain", target]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_bad_sizes(capsys):
    assert main("explain egg --n-layers 0".split()) == 2
    assert "n_layers is 0" in capsys.readouterr().err
