"""Which gradients the parts of a step return."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import llama
from springroll.planner.working_set import INDEX, arguments
from springroll.stream.step_programs import StepPrograms
from tests.compiling import quick_jit

UNTIED = llama(8, 16, 2, 1, vocab=11)
TIED = dataclasses.replace(UNTIED, tied=True)


def there(tree):
    return {name for name, leaf in tree.items() if leaf is not None}


@pytest.mark.parametrize(
    ("config", "own", "shared"),
    [(UNTIED, {"norm", "lm_head"}, set()), (TIED, {"norm"}, {"embed_tokens"})],
    ids=["untied", "tied"],
)
def test_the_head_returns_no_gradient_of_what_only_the_embedding_reads(config, own, shared):
    programs, given = StepPrograms(decoder(config)), arguments(config, 2, 4, "float32")
    head = (given.rest, None, given.x, [given.stats], given.tokens)
    grads = jax.eval_shape(programs._finish, *head, None)[2]
    assert tuple(map(there, grads)) == (own, shared)
    last = (given.rest, None, given.tokens, given.x, grads[1])
    assert there(jax.eval_shape(programs._embed_backward, *last)[0]) == {"embed_tokens"}


def test_parts_are_summed_in_float32():
    programs, given = StepPrograms(decoder(UNTIED), parts=2), arguments(UNTIED, 2, 4, "bfloat16")
    head = (given.rest, None, given.x, [given.stats], given.tokens)
    own, shared = jax.eval_shape(programs._finish, *head, None)[2]
    last, _ = jax.eval_shape(
        programs._embed_backward, given.rest, None, given.tokens, given.x, shared
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((own, last))} == {jnp.dtype(jnp.float32)}


def test_head_and_embedding_together_have_the_gradient_of_the_whole():
    model, programs = decoder(TIED), StepPrograms(decoder(TIED))
    params = model.init(jax.random.key(0))
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 5)), jnp.int32)

    @quick_jit
    def both(rest, tokens):
        x = model.embed(rest, tokens[:, :-1])
        _, _, (own, shared), dx, _, _ = programs._finish(rest, None, x, [{}], tokens, None)
        last, _ = programs._embed_backward(rest, None, tokens, dx, shared)
        whole = lambda rest: model.finish(rest, model.embed(rest, tokens[:, :-1]), {}, tokens)[0]
        return own | {"embed_tokens": last["embed_tokens"]}, jax.grad(whole)(rest)

    got, expected = both(rest, tokens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)


def test_a_backward_pass_takes_no_memory_that_xla_does_not_know_of():
    """A library of kernels would sum for the gradient of a norm, and hold all that it sums."""
    programs, given = StepPrograms(decoder(UNTIED)), arguments(UNTIED, 1, 64, "float32")
    layer = (given.layer, None, given.x, INDEX, given.x, given.stats, None)
    text = programs.backward.lower(*layer).compile().as_text()
    assert not [line for line in text.splitlines() if "kind=kCustom" in line and "reduce_" in line]
