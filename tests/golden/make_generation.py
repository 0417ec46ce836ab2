"""Golden greedy tokens of tiny random models, from transformers' own generate.

    pip install torch transformers numpy
    python tests/golden/make_generation.py        # writes generation.npz beside this file

Prompts of unequal lengths, padded on the left. Models and weights are those of `make_decoder`; only
prompts and tokens are stored. Made with transformers 5.23.0, torch 2.13.0.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.make_decoder import FAMILIES, value

GENERATED = ("llama", "llama3", "qwen2", "qwen3", "qwen3_moe", "linear", "yarn", "mistral")
GENERATED += ("mixtral", "phi3", "smollm3", "smollm3_window", "gemma2", "gemma3", "gpt_oss")
LENGTHS, NEW = (3, 9, 1, 6), 24


def run(family: str) -> dict[str, np.ndarray]:
    import transformers as tr

    config = FAMILIES[family]
    model = tr.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(value(family, name, tuple(parameter.shape))))
    rng = np.random.default_rng(1)
    prompts = np.zeros((len(LENGTHS), max(LENGTHS)), np.int64)
    mask = np.zeros_like(prompts)
    for i, n in enumerate(LENGTHS):
        prompts[i, -n:], mask[i, -n:] = rng.integers(0, config.vocab_size, n), 1
    written = model.generate(
        input_ids=torch.from_numpy(prompts),
        attention_mask=torch.from_numpy(mask),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tokens = written[:, prompts.shape[1] :].int().numpy()
    return {"prompts": prompts.astype(np.int32), "tokens": tokens}


def main() -> None:
    results: dict[str, Any] = {"lengths": np.array(LENGTHS, np.int32)}
    for family in GENERATED:
        results |= {f"{family}/{key}": array for key, array in run(family).items()}
        print(family, results[f"{family}/tokens"][0])
    np.savez_compressed(Path(__file__).with_name("generation.npz"), **results)


if __name__ == "__main__":
    main()
