"""Golden steps of a LoRA adapter of a tiny Llama by PEFT (torch, CPU, float32).

    pip install torch transformers peft numpy
    python -m tests.golden.make_lora           # writes lora.npz beside this file

Weights come from `weights_by_formula`, by their names in a checkpoint, those of A by their names in
the adapter; B begins with zero. Stored are the tokens, the loss of every step, and A and B after
the last one. Made with peft 0.21.2, transformers 5.24.0, torch 2.13.0.
"""

from pathlib import Path

import numpy as np
import torch
import transformers as tr
from peft import LoraConfig, get_peft_model

from tests.golden.weights_by_formula import weight

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
RANK, ALPHA, STEPS = 4, 6, 5
RATE, DECAY, CLIP = 1e-2, 0.1, 0.5


def main() -> None:
    base = tr.LlamaForCausalLM(tr.LlamaConfig(**SHAPE, rms_norm_eps=1e-5))
    model = get_peft_model(
        base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            plain = name.replace("base_model.model.", "").replace("base_layer.", "")
            if "lora_B" not in name:
                plain = plain.replace(".default", "")
                tensor.copy_(torch.from_numpy(weight(plain, tuple(tensor.shape))))
    tokens = np.random.default_rng(0).integers(0, 48, (STEPS, 2, 13))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=DECAY)
    losses = []
    for rows in torch.from_numpy(tokens):
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        losses.append(float(loss.detach()))
    of = lambda name: name.removeprefix("base_model.model.").replace(".default", "")
    after = {of(name): p.detach().numpy() for name, p in trained.items()}
    file = Path(__file__).with_name("lora.npz")
    np.savez_compressed(file, tokens=tokens.astype(np.int8), losses=losses, **after)
    print(losses, len(after), file.stat().st_size)


if __name__ == "__main__":
    main()
