"""The decoder computes what transformers computes, family by family (float32, CPU)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, Fields, shapes
from springroll.models.rope import Llama3Scaling, YarnScaling
from tests.compiling import quick_jit
from tests.golden.weights_by_formula import weight

GOLDEN = Path(__file__).parents[1] / "golden" / "decoder.npz"


def with_fields(fields: Fields, other: Fields) -> Fields:
    return fields | other


SHARED: Fields = {"vocab": 48, "hidden": 32, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
DENSE: Fields = {**SHARED, "ffn": 40}
EXPERTS: Fields = {**SHARED, "ffn": 24, "experts": 6, "top_k": 2}
YARN = YarnScaling(factor=8.0, beta_fast=4.0, original_length=64, truncate=False)
LLAMA3 = Llama3Scaling(factor=8.0, original_length=64)
FAMILIES = {
    "llama": DecoderConfig(**DENSE, norm_eps=1e-5),
    "llama3": DecoderConfig(**DENSE, rope_theta=100.0, rope_scaling=LLAMA3),
    "tied": DecoderConfig(**DENSE, tied=True),
    "qwen2": DecoderConfig(**DENSE, qkv_bias=True),
    "qwen3": DecoderConfig(**with_fields(DENSE, {"head_dim": 16}), qk_norm="head"),
    "qwen3_moe": DecoderConfig(**with_fields(EXPERTS, {"head_dim": 16}), qk_norm="head"),
    "gpt_oss": DecoderConfig(
        **EXPERTS,
        rope_theta=100.0,
        rope_scaling=YARN,
        norm_eps=1e-5,
        qkv_bias=True,
        o_bias=True,
        expert_bias=True,
        sinks=True,
        window=5,
        swiglu_limit=1.0,
    ),
    "olmoe": DecoderConfig(
        **with_fields(EXPERTS, {"ffn": 40}), qk_norm="whole", renormalise=False, norm_eps=1e-5
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


def common_leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
    stacked = path.startswith("layers/") + ("experts/" in path)
    parts = [weight(name, shape[stacked:]) for name in checkpoint_names(path, shape)]
    return np.stack(parts).reshape(shape)


def gpt_oss_leaf(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Its checkpoints fuse gate and up, column by column, and store the experts (in, out)."""
    layers = [f"model.layers.{i}" for i in range(shape[0])]
    leaf = path.split("/")[-1]
    stack = lambda name, one: np.stack([weight(f"{at}.{name}", one) for at in layers])
    if path == "layers/self_attn/sinks":
        return stack("self_attn.sinks", shape[1:])
    if path.startswith("layers/mlp/gate"):
        return stack("mlp.router." + ("bias" if "bias" in path else "weight"), shape[1:])
    if "experts/" not in path:
        return common_leaf(path, shape)
    kind = "_bias" if "bias" in path else ""
    if leaf.startswith("down"):
        w = stack(f"mlp.experts.down_proj{kind}", shape[1:2] + shape[:1:-1])
        return w if kind else w.swapaxes(-1, -2)
    w = stack(f"mlp.experts.gate_up_proj{kind}", (shape[1], *shape[:2:-1], 2 * shape[2]))
    w = w[..., leaf.startswith("up") :: 2]
    return w if kind else w.swapaxes(-1, -2)


def by_formula(family: str):
    make = gpt_oss_leaf if family == "gpt_oss" else common_leaf
    named = lambda path, shape: jnp.asarray(make("/".join(key.key for key in path), shape))
    is_shape = lambda node: isinstance(node, tuple)
    return jax.tree_util.tree_map_with_path(named, shapes(FAMILIES[family]), is_leaf=is_shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_loss_are_those_of_transformers(family):
    golden = np.load(GOLDEN)
    model = decoder(FAMILIES[family])
    params, tokens = by_formula(family), jnp.asarray(golden[f"{family}/tokens"])
    logits = quick_jit(model.apply)(params, tokens)
    np.testing.assert_allclose(logits, golden[f"{family}/logits"], rtol=0, atol=5e-6)
    nats = -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), tokens[:, 1:, None], axis=-1)
    )
    np.testing.assert_allclose(nats, golden[f"{family}/nats"], atol=1e-5)
