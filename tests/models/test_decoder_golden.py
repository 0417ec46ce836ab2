"""The decoder computes what transformers computes, family by family (float32, CPU)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weights_by_formula import weight

from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig
from springroll.models.decoder_shapes import shapes
from springroll.models.rope import Llama3Scaling, YarnScaling

GOLDEN = Path(__file__).parents[1] / "golden" / "decoder.npz"
SHARED = {"vocab": 48, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
DENSE = {**SHARED, "ffn": 40}
EXPERTS = {**SHARED, "ffn": 24, "experts": 6, "top_k": 2}
LLAMA3 = Llama3Scaling(factor=8.0, original_length=64)
FAMILIES = {
    "llama": DecoderConfig(**DENSE, norm_eps=1e-5),
    "llama3": DecoderConfig(**DENSE, rope_theta=100.0, rope_scaling=LLAMA3),
    "tied": DecoderConfig(**DENSE, tied=True),
    "qwen2": DecoderConfig(**DENSE, qkv_bias=True),
    "qwen3": DecoderConfig(**(DENSE | {"head_dim": 16}), qk_norm="head"),
    "qwen3_moe": DecoderConfig(**(EXPERTS | {"head_dim": 16}), qk_norm="head"),
    "olmoe": DecoderConfig(
        **(EXPERTS | {"ffn": 40}), qk_norm="whole", renormalise=False, norm_eps=1e-5
    ),
}


def checkpoint_names(path: str, shape: tuple[int, ...]) -> list[str]:
    """The names in a Hugging Face checkpoint of a leaf's slices, in order."""
    if path == "lm_head":
        return ["lm_head.weight"]
    stem, kind = path, "weight"
    if path.endswith("_bias"):
        stem, kind = path.removesuffix("bias") + "proj", "bias"
    parts = stem.split("/")
    if parts[0] != "layers":
        return [f"model.{stem}.{kind}"]
    inside, leaf = parts[1:-1], parts[-1]
    names = [".".join(["model.layers", str(i), *inside]) for i in range(shape[0])]
    if "experts" in inside:
        names = [f"{name}.{e}" for name in names for e in range(shape[1])]
    return [f"{name}.{leaf}.{kind}" for name in names]


def by_formula(config: DecoderConfig):
    def leaf(path, shape):
        name = "/".join(key.key for key in path)
        stacked = {"layers": 1}.get(name.split("/")[0], 0) + ("experts/" in name)
        parts = [weight(n, shape[stacked:]) for n in checkpoint_names(name, shape)]
        return jnp.asarray(np.stack(parts).reshape(shape))

    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree_util.tree_map_with_path(leaf, shapes(config), is_leaf=is_shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_are_those_of_transformers(family):
    golden = np.load(GOLDEN)
    model = decoder(FAMILIES[family])
    params, tokens = by_formula(model.config), jnp.asarray(golden[f"{family}/tokens"])
    logits = jax.jit(model.apply)(params, tokens)
    np.testing.assert_allclose(logits, golden[f"{family}/logits"], atol=1e-4)
    nats = -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    )
    np.testing.assert_allclose(nats, golden[f"{family}/nats"], atol=1e-5)
