"""Weights that are divided over devices are gathered a layer at a time, and nothing else is."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from springroll.models.decoder import decoder
from springroll.models.decoder_config import named
from springroll.train.build import Placement
from springroll.train.divided import DividedStages

COLLECTIVE = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
ROWS, TIME = 4, 8


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_are_those_of_the_whole_model_and_only_weights_cross_between_devices(remat):
    placement = Placement(Mesh(np.array(jax.devices()[:2]), ("batch",)), fsdp=True)
    model = decoder(named("llama-tiny"), remat)
    parts = DividedStages(model, placement.state, placement.batch)
    params = model.init(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (ROWS, TIME + 1), 0, 256)
    (loss, _), expected = jax.jit(jax.value_and_grad(model.loss, has_aux=True))(params, tokens)

    divided = jax.device_put(params, placement.layout(params))
    given = divided, jax.device_put(tokens, placement.batch)
    program = jax.jit(jax.value_and_grad(parts.loss, has_aux=True)).lower(*given).compile()
    (found, _), grads = program(*given)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    for got, want in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.max(np.abs(want)))

    # What crosses (beside token ids): numbers, weights of one layer, embedding, norm and head.
    layer = jax.tree.map(lambda w: w[0], params["layers"])
    rest = {name: w for name, w in params.items() if name != "layers"}
    weights = {w.shape for w in jax.tree.leaves((layer, rest))}
    text = str(program.as_text())
    lines = re.findall(rf"= (.*?) (?:{COLLECTIVE})(?:-start)?\(", text)
    shapes = re.findall(r"f32\[([\d,]*)\]", " ".join(lines))
    crossing = {tuple(int(n) for n in shape.split(",") if n) for shape in shapes}
    alien = lambda shape: shape and shape[-2:] not in weights and shape[-1:] not in weights
    assert not list(filter(alien, crossing))
    assert any(shape[-2:] in weights for shape in crossing)
    whole = sum(w.nbytes for w in jax.tree.leaves(params))
    analysis = program.memory_analysis()
    assert analysis and analysis.argument_size_in_bytes < 0.51 * whole + tokens.nbytes
