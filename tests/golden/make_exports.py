"""Folders that springroll writes, loaded by transformers: the logits must agree to 5e-6.

    pip install torch transformers peft       # in one environment
    python tests/golden/make_exports.py write FOLDER     # with springroll
    python tests/golden/make_exports.py check FOLDER     # with transformers

Checked with transformers 5.24.0, torch 2.13.0, peft 0.21.2: all within 5e-6, of logits that spread
by 1. The families of `tests/models/test_hf.py` are read and written twice: like the folder that was
read, with its joined tensors joined again (`_like`), and as the first family that has all of the
model (`_any`); both must give the logits of `decoder.npz`.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

TOKENS = np.random.default_rng(0).integers(0, 48, (2, 40)).astype(np.int32)


def write(root: Path) -> None:
    """One folder for each family, with the logits beside it."""
    import jax
    import jax.numpy as jnp

    from springroll.models.decoder import decoder
    from springroll.models.decoder_config import llama
    from springroll.models.hf.load import load_hf
    from springroll.models.hf.lora import Adapter, save_adapter
    from springroll.models.hf.save import save_hf
    from springroll.models.rope import Llama3Scaling
    from springroll.subspace.adapters import first_adapters, with_adapters
    from tests.models import test_hf

    shape = {"vocab": 48, "kv_heads": 2, "init_std": 0.12}
    scaling = Llama3Scaling(factor=8.0, original_length=16)
    families = {
        "llama": llama(32, 40, 4, 3, **shape),
        "llama3": llama(32, 40, 4, 3, **shape, rope_theta=100.0, rope_scaling=scaling),
        "llama_tied": llama(32, 40, 4, 3, **shape, tied=True),
        "qwen2": llama(32, 40, 4, 3, **shape, qkv_bias=True),
        "qwen2_tied": llama(32, 40, 4, 3, **shape, qkv_bias=True, tied=True),
        "qwen3": llama(32, 40, 4, 3, **shape, qk_norm="head", head_dim=16),
        "qwen3_moe": llama(32, 24, 4, 3, **shape, qk_norm="head", head_dim=16, experts=6, top_k=2),
    }
    for name, config in families.items():
        model = decoder(config)
        params = model.init(jax.random.key(0))
        rng = np.random.default_rng(0)
        # Norms and biases, which are all alike at first, differ too.
        params = jax.tree.map(
            lambda x, rng=rng: x + rng.normal(0, 0.1, x.shape).astype(x.dtype), params
        )
        save_hf(root / name, model, params)
        np.save(root / name / "logits.npy", jax.jit(model.apply)(params, jnp.asarray(TOKENS)))
        np.save(root / name / "tokens.npy", TOKENS)
    # transformers reads an adapter with PEFT, from the base that it names.
    config, adapter = families["llama"], Adapter(4, 6.0)
    model = decoder(config)
    params: Any = load_hf(root / "llama")[1]
    like: Any = jax.eval_shape(model.init, jax.random.key(0))
    trained = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(x.size), x.shape) / 8,
        jax.eval_shape(lambda: first_adapters(jax.random.key(0), like, adapter.rank)),
    )
    save_adapter(root / "adapter", config, trained, root / "llama", adapter)
    thin = with_adapters(params, trained, adapter.alpha / adapter.rank)
    np.save(root / "adapter" / "logits.npy", jax.jit(model.apply)(thin, jnp.asarray(TOKENS)))
    np.save(root / "adapter" / "tokens.npy", TOKENS)
    golden = np.load(test_hf.GOLDEN)
    for name in test_hf.FAMILIES:
        source = root / f"{name}_source"
        source.mkdir(parents=True)
        model, params = test_hf.by_name(name, source)
        for folder, like in ((root / f"{name}_like", source), (root / f"{name}_any", None)):
            save_hf(folder, model, params, like=like)
            np.save(folder / "logits.npy", golden[f"{name}/logits"])
            np.save(folder / "tokens.npy", golden[f"{name}/tokens"])
        shutil.rmtree(source)


def check(root: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for folder in sorted(root.iterdir()):
        # phi3 would have a padding token beyond this vocabulary by default.
        load = {"attn_implementation": "eager", "pad_token_id": None}
        model = AutoModelForCausalLM.from_pretrained(folder, **load).float()
        with torch.no_grad():
            expected = np.load(folder / "logits.npy")
            tokens = np.load(folder / "tokens.npy")
            logits = model.eval()(torch.from_numpy(tokens).long()).logits.numpy()
        apart = np.max(np.abs(logits - expected))
        spread = np.std(expected)
        print(f"{folder.name}: {type(model).__name__}, {apart:.1e} apart of {spread:.1f}")
        assert apart < 5e-6 and spread > 0.4


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
