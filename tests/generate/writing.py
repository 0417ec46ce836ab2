"""A tiny model, a population around it, and members written one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import springroll as sr
from springroll.generate.generator import Generator, _Run
from springroll.generate.spread import devices_of, parts_of
from springroll.models.decoder import decoder
from springroll.models.decoder_config import CONFIGS
from tests.evolve.dense_population import all_params

END, MOST, MEMBERS = frozenset(range(24)), 10, 4
PROMPTS = [[200, 3, 77, 120, 9], [150, 31], [9, 8, 7, 6, 5, 4, 3], [99]]


@functools.cache
def tiny(name="llama-tiny"):
    """(model, parameters, a generation's members); texts end early and late."""
    model = decoder(CONFIGS[name])
    params = jax.tree.map(lambda w: 4 * w if w.ndim > 1 else w, model.init(jax.random.key(0)))
    es = sr.eggroll(pop_size=MEMBERS, sigma=0.05, rank=1)
    return model, params, es.ask(es.init(jax.random.key(1), params))


def generator(name="llama-tiny", **options):
    return Generator(**({"model": tiny(name)[0], "end": END, "max_tokens": MOST} | options))


def running(writer, params, members, prompts, unperturbed=0):
    """A call of `writer.run` that has not begun."""
    [part] = parts_of(members, len(prompts), unperturbed, devices_of(None, members, params))
    return _Run(writer, params, members, prompts, 0, part)


@functools.cache
def at_once(name="llama-tiny"):
    """All rows together; half of them end early enough to be moved together."""
    _, params, members = tiny(name)
    return generator(name, segment=4).run(params, members, PROMPTS)


@functools.cache
def formed(name="llama-tiny"):
    """The weights of every member, formed."""
    _, params, members = tiny(name)
    return [jax.tree.map(jnp.asarray, w) for w in all_params(params, members)]


def same(a, b):
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    np.testing.assert_array_equal(a.finished, b.finished)
