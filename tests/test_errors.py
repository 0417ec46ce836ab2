"""What is said: one safe line, and the nearest known name for an unknown one."""

from pathlib import Path

import jax.numpy as jnp
import optax
import pytest

import springroll as sr
from springroll import models, noise, stream, tokens
from springroll.errors import InputError, as_path, nearest, one_line, suggestion
from springroll.models.hf import is_hf_folder, open_hf, read_config


def test_the_nearest_name_is_suggested():
    assert suggestion("dmo", ["demo", "bigram"]) == "; did you mean demo?"
    assert suggestion("dmo", ["demo", "bigram"], quoted=True) == "; did you mean 'demo'?"
    assert suggestion("xyz", ["demo", "bigram"]) == ""
    assert suggestion("xyz", ["demo"], otherwise="there is demo") == "; there is demo"


def test_how_near_it_must_be_is_a_choice():
    assert nearest("xyz", ["demo", "y"]) is None
    assert nearest("xyz", ["demo", "y"], cutoff=0.0) == "y"


def test_whatever_text_is_one_line_that_is_safe_on_a_terminal():
    said = one_line("a\x1b[31m\r\n\tb\0 \x9bc \u202ed \ud800 \u2028 46", most=60)
    assert said == "a\ufffd[31m b\ufffd \ufffdc \ufffdd \ufffd 46" and said.isprintable()
    assert one_line("x" * 10**7, most=10) == "xxxxxxx..." and one_line(" ") == ""


def test_a_path_is_text_or_a_path():
    assert as_path("a/b") == as_path(Path("a/b")) == Path("a/b")


PARAMS = {"w": jnp.ones((4, 4))}
OTHERS = (None, 3, 2.5, True, [1], ["a"], {}, b"x", object())  # no text, path, model or function
ARGUMENTS = {
    "load_hf": sr.load_hf,
    "save_hf": lambda given: sr.save_hf(given, models.CONFIGS["llama-1m"], {}),
    "plan": lambda given: sr.plan(given, device="24GiB", host="64GiB"),
    "read_config": read_config,
    "open_hf": open_hf,
    "is_hf_folder": is_hf_folder,
    "open_tokenizer": tokens.open_tokenizer,
    "write_byte_tokenizer": tokens.write_byte_tokenizer,
    "mapped_model": stream.mapped_model,
    "named": models.named,
    "decoder": models.decoder,
    "egg": models.egg,
    "expert_stages": lambda given: models.expert_stages(given, 2),
    "layerwise": lambda given: sr.layerwise(given, optax.adam(1e-3)).init({"layers": PARAMS}),
    "noise_named": noise.noise_named,
    "lattice": lambda given: sr.lattice(pop_size=4, rule=given),
    "discover": lambda given: sr.discover(given, PARAMS),
    "discover of nothing": lambda given: sr.discover(given, 2),
    "explain": lambda given: sr.explain(given, PARAMS),
    "factored": sr.factored,
    "apollo": lambda given: sr.apollo(given, 2),
    "fira": lambda given: sr.fira(given, 2),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_no_path_name_or_function_is_one_line(name):
    rates = (3, 2.5, True) if name in ("apollo", "fira") else ()
    for given in (x for x in OTHERS if x not in rates):
        with pytest.raises(InputError) as error:
            ARGUMENTS[name](given)
        assert "\n" not in str(error.value)
