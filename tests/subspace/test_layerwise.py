"""Layer by layer equals all at once, and holds one layer's gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from springroll.compat import edge_jit
from springroll.errors import InputError
from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.quant.quantize_state import quantize_state
from springroll.quant.split_master import high_half, join, with_split_master
from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.layerwise import layerwise, parted

LAYERS, WIDTH, VOCAB = 3, 32, 64
# Everything a block can have: routing losses, integer statistics, windows by layer, a tied head.
MIXED = DecoderConfig(
    vocab=VOCAB, hidden=WIDTH, layers=LAYERS, heads=2, kv_heads=1, head_dim=16, ffn=16, experts=4,
    top_k=2, tied=True, switch_loss=0.1, z_loss=0.1, init_std=0.2, window=5,
)  # fmt: skip


class Toy(NamedTuple):
    """A residual net over tokens: as `decoder`, and quick to compile."""

    layers: int = LAYERS
    width: int = WIDTH

    def init(self, key):
        normal = lambda i, *shape: 0.2 * jax.random.normal(jax.random.fold_in(key, i), shape)
        n, d = self.layers, self.width
        layers = {"norm": jnp.ones((n, d)), "up_proj": normal(0, n, 2 * d, d)}
        layers["down_proj"] = normal(1, n, d, 2 * d)
        return {"layers": layers, "embed": normal(2, VOCAB, d), "lm_head": normal(3, VOCAB, d)}

    stack = "layers"

    def embed(self, params, tokens):
        return params["embed"][tokens]

    def block(self, layer, x, index):
        y = x * layer["norm"].astype(x.dtype)[None, None]
        y = jnp.tanh(jnp.einsum("btd,fd->btf", y, layer["up_proj"]))
        return x + jnp.einsum("btf,df->btd", y, layer["down_proj"]), {"seen": index}

    def finish(self, params, x, stats, tokens):
        logits = jnp.einsum("btd,vd->btv", x, params["lm_head"]).astype(jnp.float32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()
        return nats, {"nats": nats, **stats}

    def loss(self, params, tokens):
        step = lambda x, w: self.block(w[0], x, w[1])
        layers = (params["layers"], jnp.arange(self.layers, dtype=jnp.int32))
        x, stats = jax.lax.scan(jax.checkpoint(step), self.embed(params, tokens[:, :-1]), layers)
        return self.finish(params, x, stats, tokens)


@pytest.fixture(autouse=True)
def lenient_promotion():
    """optax mixes ints and floats at init."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def batch(seed, time=12):
    return jax.random.randint(jax.random.key(seed), (2, time + 1), 0, VOCAB)


def setup():
    return Toy(), Toy().init(jax.random.key(0))


def at(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


def applied(params, updates) -> Any:
    return optax.apply_updates(params, updates)


def whole_gradient_step(loss, optimizer, rest):
    """The obvious way: one gradient of the whole loss, then every layer by itself."""

    @jax.jit
    def init(params):
        layers, others = parted(params)
        each = [optimizer.init({"layers": at(layers, i)}) for i in range(LAYERS)]
        return each, rest.init(others)

    @jax.jit
    def step(params, state, tokens):
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params, tokens)
        (layers, others), (g_layers, g_others) = parted(params), parted(grads)
        new, states = [], []
        for i in range(LAYERS):
            part, grad = {"layers": at(layers, i)}, {"layers": at(g_layers, i)}
            updates, after = optimizer.update(grad, state[0][i], part)
            new.append(applied(part, updates)["layers"])
            states.append(after)
        updates, last = rest.update(g_others, state[1], others)
        others = applied(others, updates)
        params = {**others, "layers": jax.tree.map(lambda *x: jnp.stack(x), *new)}
        return params, (states, last), (value, optax.tree.norm(grads))

    return init, step


def test_equals_the_gradient_of_the_whole_loss():
    whole = decoder(MIXED)
    params = jax.jit(whole.init)(jax.random.key(0))
    optimizer, rest = optax.adamw(1e-2, eps=1e-4), optax.sgd(0.1)
    trainer = layerwise(whole, optimizer, rest)
    init, slow = whole_gradient_step(whole.loss, optimizer, rest)
    step = jax.jit(trainer.step)
    state, slow_state, wanted = jax.jit(trainer.init)(params), init(params), params
    for t in range(3):
        params, state, metrics = step(params, state, batch(t))
        wanted, slow_state, (loss, norm) = slow(wanted, slow_state, batch(t))
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
        assert metrics["nats"].shape == ()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, wanted)


@pytest.mark.parametrize(
    "make",
    [pytest.param(apollo_mini, marks=pytest.mark.slow), functools.partial(apollo, rank=4)],
)
def test_apollo_is_that_of_the_stacked_layers(make):
    """Layer i draws the projection that matrix i of the stack has."""
    model, params = setup()
    optimizer = make(1e-2, rows="out", select="layers/*_proj")
    trainer = layerwise(model, optimizer, optax.adam(1e-3))
    step, state, whole = jax.jit(trainer.step), jax.jit(trainer.init)(params), optimizer
    stacked, moments = params, jax.jit(whole.init)({"layers": params["layers"]})
    rest, rest_state = optax.adam(1e-3), optax.adam(1e-3).init(parted(params)[1])

    @jax.jit
    def slow(params, moments, rest_state, tokens):
        grads = jax.grad(lambda p: model.loss(p, tokens)[0])(params)
        (layers, others), (g_layers, g_others) = parted(params), parted(grads)
        layers = {"layers": layers}
        updates: Any
        more: Any
        updates, moments = whole.update({"layers": g_layers}, moments, layers)
        more, rest_state = rest.update(g_others, rest_state, others)
        new = applied({**others, **layers}, {**more, **updates})
        return new, moments, rest_state

    for t in range(2):
        params, state, _ = step(params, state, batch(t))
        stacked, moments, rest_state = slow(stacked, moments, rest_state, batch(t))
    for name in ("up_proj", "down_proj"):
        found, wanted = (p["layers"][name] for p in (params, stacked))
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_clipping_by_layer_and_by_the_step_before():
    model, params = setup()
    norms = {}
    for clip_by in ("layer", "previous"):
        trainer = layerwise(model, optax.sgd(1.0), clip=0.05, clip_by=clip_by)
        step, state, new = jax.jit(trainer.step), jax.jit(trainer.init)(params), params
        moved = []
        for _ in range(2):
            old = new
            new, state, metrics = step(old, state, batch(0))
            change = jax.tree.map(lambda a, b: a - b, new, old)
            parts = [at(change["layers"], i) for i in range(LAYERS)] + [parted(change)[1]]
            moved.append(([float(optax.tree.norm(p)) for p in parts], float(metrics["grad_norm"])))
        norms[clip_by] = moved
    assert max(norms["layer"][0][0]) == pytest.approx(0.05, rel=1e-3)
    (first, norm), (second, after) = norms["previous"]
    assert np.sqrt(np.sum(np.square(first))) == pytest.approx(norm, rel=1e-4)  # nothing to go by
    wanted = after * min(1, 0.05 / norm)
    assert np.sqrt(np.sum(np.square(second))) == pytest.approx(wanted, rel=1e-3)


def test_a_loss_that_is_not_finite_changes_nothing():
    model, params = setup()
    broken = {**params, "lm_head": params["lm_head"].at[0].set(jnp.nan)}
    trainer = layerwise(model, optax.adam(1e-2))
    state = trainer.init(params)
    new, after, metrics = jax.jit(trainer.step)(broken, state, batch(0))
    assert np.isnan(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, (new, after), (broken, state))


@pytest.mark.slow
def test_state_in_eight_bits_and_split_masters_go_along():
    model, params = setup()
    small = quantize_state(optax.adam(1e-2), min_size=256)
    tx = with_split_master(small)
    exact_trainer = layerwise(model, small)
    trainer = layerwise(model, tx)
    state, exact_state = jax.jit(trainer.init)(params), jax.jit(exact_trainer.init)(params)
    assert state.layers.inner_state[0].mu["layers"]["up_proj"].codes.dtype == jnp.int8
    params, exact = high_half(params), params
    step, exact_step = jax.jit(trainer.step), jax.jit(exact_trainer.step)
    losses = []
    for _ in range(4):
        params, state, metrics = step(params, state, batch(0))
        exact, exact_state, wanted = exact_step(exact, exact_state, batch(0))
        losses.append((float(metrics["loss"]), float(wanted["loss"])))
    assert params["lm_head"].dtype == jnp.bfloat16
    master = join(params["lm_head"], state.rest.low["lm_head"])
    np.testing.assert_allclose(master, exact["lm_head"], atol=0.03)
    assert losses[-1][0] < losses[0][0] - 0.2
    assert losses[-1][0] == pytest.approx(losses[-1][1], rel=0.05)


def compiled_bytes(layers, optimizer, layer_by_layer):
    """Temporary bytes of a donated step, compiled for shapes alone."""
    model = Toy(layers, 128)
    params = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    if layer_by_layer:
        trainer = layerwise(model, optimizer)
        init: Any = trainer.init
        step: Any = trainer.step
    else:

        def usual(params, state, tokens):
            grads = jax.grad(lambda p: model.loss(p, tokens)[0])(params)
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        init, step = optimizer.init, usual

    state = jax.eval_shape(init, params)
    jitted: Any = edge_jit(step, donate_argnums=(0, 1))
    compiled = jitted.lower(params, state, tokens).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 0.99 * memory.output_size_in_bytes
    one_layer = sum(x.size * 4 // layers for x in jax.tree.leaves(params["layers"]))
    return memory.temp_size_in_bytes, one_layer


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(1e-3),
        pytest.param(apollo_mini(1e-2, rows="out"), marks=pytest.mark.slow),
    ],
    ids=["adam", "apollo_mini"],
)
@pytest.mark.usefixtures("optimized")
def test_memory_does_not_grow_with_the_gradients_of_more_layers(optimizer):
    few, layer = compiled_bytes(4, optimizer, True)
    many, _ = compiled_bytes(20, optimizer, True)
    assert many - few < 0.1 * 16 * layer  # the inputs of 16 more blocks
    assert many < 8 * layer


@pytest.mark.usefixtures("optimized")
def test_the_usual_step_holds_every_gradient():
    few, layer = compiled_bytes(4, optax.adam(1e-3), False)
    many, _ = compiled_bytes(20, optax.adam(1e-3), False)
    assert many - few > 0.9 * 16 * layer


def test_bad_input():
    model, _ = setup()
    with pytest.raises(InputError, match="clip is 0"):
        layerwise(model, optax.adam(1e-3), clip=0)
    unknown: Any = "global"
    with pytest.raises(InputError, match="clip_by is 'global'"):
        layerwise(model, optax.adam(1e-3), clip_by=unknown)
