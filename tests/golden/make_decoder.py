"""Golden logits of tiny random models of every family, from transformers (torch, CPU, float32).

    pip install torch transformers numpy
    python tests/golden/make_decoder.py        # writes decoder.npz beside this file

Weights come from `weights_by_formula`, by their names in a checkpoint; only tokens, logits and mean
losses are stored. What this file does not list is read by transformers from the `config.json` of
`tests/models/test_hf.py`. Made with transformers 5.23.0, torch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as tr

from tests.golden.weights_by_formula import weight
from tests.models import test_hf

SHARED = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "tie_word_embeddings": False,
    "max_position_embeddings": 64,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 8.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2}
FAMILIES = {
    "llama": tr.LlamaConfig(**SHARED, rms_norm_eps=1e-5),
    "llama3": tr.LlamaConfig(**SHARED, rope_parameters=LLAMA3),
    "tied": tr.LlamaConfig(**(SHARED | {"tie_word_embeddings": True})),
    "qwen2": tr.Qwen2Config(**SHARED),
    "qwen3": tr.Qwen3Config(**SHARED, head_dim=16),
    "qwen3_moe": tr.Qwen3MoeConfig(
        **SHARED, **EXPERTS, head_dim=16, moe_intermediate_size=24, norm_topk_prob=True
    ),
    "gpt_oss": tr.GptOssConfig(
        **(SHARED | {"intermediate_size": 24, "head_dim": 8, "num_local_experts": 6}),
        num_experts_per_tok=2,
        sliding_window=5,
        rope_parameters=YARN,
        swiglu_limit=1.0,
    ),
    "olmoe": tr.OlmoeConfig(**SHARED, **EXPERTS, norm_topk_prob=False),
}
OF_JSON = [name for name in test_hf.FAMILIES if name not in FAMILIES]
TEXT = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
FAMILIES |= {name: tr.AutoConfig.for_model(**test_hf.config_of(name), **TEXT) for name in OF_JSON}


def value(family: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of a model in memory; a fused one is put together from its checkpoint's parts."""
    if family == "mixtral":
        name = name.replace(".mlp.", ".block_sparse_moe.")
    if family == "gpt_oss" or not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
        return weight(name, shape)
    stem, fused = name.rsplit(".", 1)
    parts = ["down_proj"] if fused == "down_proj" else ["gate_proj", "up_proj"]
    rows = shape[1] // len(parts)
    if family == "mixtral":
        parts = ["w2"] if fused == "down_proj" else ["w1", "w3"]
    one = lambda e: [weight(f"{stem}.{e}.{part}.weight", (rows, shape[2])) for part in parts]
    return np.stack([np.concatenate(one(e)) for e in range(shape[0])])


def run(family: str) -> dict[str, np.ndarray]:
    config = FAMILIES[family]
    model = tr.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(value(family, name, tuple(parameter.shape))))
        tokens = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, (2, 13)))
        logits = model(tokens).logits
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].mT, tokens[:, 1:])
    return {"tokens": tokens.int().numpy(), "logits": logits.numpy(), "nats": nats.numpy()}


def main() -> None:
    results = {}
    for family in FAMILIES:
        results |= {f"{family}/{key}": array for key, array in run(family).items()}
        print(family, results[f"{family}/nats"])
    np.savez_compressed(Path(__file__).with_name("decoder.npz"), **results)


if __name__ == "__main__":
    main()
