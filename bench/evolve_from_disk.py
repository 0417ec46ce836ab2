"""A generation of a model of 4 billion parameters whose weights stay in files: time and memory.

    python -m bench.evolve_from_disk [MEMBERS] [TOKENS] [FOLDER]

A Hugging Face folder of random bfloat16 weights, 8.2 GB, is written to a temporary place in FOLDER
(default: where temporary files go) and deleted at the end; its pages are dropped from memory before
the first generation. Two generations run: the first only scores, the second takes the step of the
first on the way. Memory is what the process has of its own, without pages of files.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax

from springroll.bench import measure
from springroll.bench.process_memory import peak_memory
from springroll.evolve.eggroll import eggroll
from springroll.evolve.members import evaluate
from springroll.evolve.strategy import Strategy
from springroll.models.decoder import Decoder, stages
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.load import load_hf
from springroll.models.hf.save import save_hf
from springroll.stream.store import mapped_model
from springroll.stream.streamed_population import stream_population
from springroll.thin.discovery import discover

GIB = 1 << 30
# Qwen3-4B's layers, four more of them, and a quarter of its vocabulary.
FOUR_BILLION = DecoderConfig(
    vocab=32768,
    hidden=2560,
    layers=40,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=9728,
    tied=True,
    qk_norm="head",
    rope_theta=1e6,
)
AFFORDABLE = 10_000_000  # parameters up to which members are also evaluated on the whole model


def run(
    config: DecoderConfig = FOUR_BILLION,
    members: int = 4,
    tokens: int = 16,
    place: str | None = None,
    dtype: Any = ml_dtypes.bfloat16,
) -> dict[str, Any]:
    """Seconds and bytes of two generations, and peak memory beside the size of the weights."""
    text = np.random.default_rng(0).integers(0, config.vocab, (1, tokens + 1)).astype(np.int32)
    with tempfile.TemporaryDirectory(dir=place) as folder:
        save_hf(folder, config, random_bundles(config, dtype), dtype=dtype)
        drop_pages(folder)
        with peak_memory() as peak:
            found = generations(folder, members, text)
        if config.parameters <= AFFORDABLE:
            found["difference"] = difference(folder, members, text, found["fitness"])
    del found["fitness"]
    weights = config.parameters * np.dtype(dtype).itemsize
    return measure.record(
        "evolve_from_disk",
        ours=peak["own"] / GIB,
        baseline=weights / GIB,
        ratio=weights / peak["own"],
        unit="GiB; ours: peak memory of the process without file pages, baseline: the weights",
        parameters=config.parameters,
        members=members,
        tokens=tokens,
        **found,
    )


def generations(folder: str, members: int, text: np.ndarray) -> dict[str, Any]:
    """Two generations from the mapped folder: seconds and bytes to the device of each, fitness."""
    model, store = mapped_model(folder)
    strategy = evolution(stages(model), members, text)
    start = time.perf_counter()
    engine = stream_population(strategy, model, store, key=jax.random.key(0))
    scores, seconds, sent = [], [time.perf_counter() - start], []
    for _ in range(2):
        start = time.perf_counter()
        fitness = np.asarray(engine.evaluate(text)[0])
        engine.tell(fitness)
        scores.append(fitness)
        seconds.append(time.perf_counter() - start)
        sent.append(engine.link.traffic.sent)
    return {
        "opening_seconds": seconds[0],
        "scoring_seconds": seconds[1],
        "stepping_seconds": seconds[2],
        "sent_gib": (sent[1] - sent[0]) / GIB,
        "fetched_gib": engine.link.traffic.fetched / GIB,
        "layers_there": engine.conveyor.ledger.peak,
        "nats": -float(scores[0].mean()),
        "fitness": scores[0],
    }


def evolution(model: Decoder, members: int, text: Any) -> Strategy:
    """Without state per weight: plain SGD, bfloat16 rounded stochastically."""
    like = jax.eval_shape(model.init, jax.random.key(0))
    roles = discover(lambda params, text: -model.loss(params, text)[1]["nats"], like, text)
    return eggroll(
        pop_size=members,
        sigma=1e-3,
        noise="rademacher",
        roles=roles,
        optimizer=optax.sgd(0.5),
        master="stochastic",
    )


def difference(folder: str, members: int, text: np.ndarray, fitness: np.ndarray) -> float:
    """How far the fitness of the first generation is from that on the whole model."""
    model, params = load_hf(folder)
    strategy = evolution(stages(model), members, text)
    state = strategy.init(jax.random.key(0), params)
    score = lambda params, text: -model.loss(params, text)[1]["nats"]
    direct = evaluate(score, state, strategy.ask(state), text)
    return float(np.abs(np.asarray(direct) - fitness).max())


def random_bundles(config: DecoderConfig, dtype: Any) -> Iterator[Any]:
    """Every layer, then the rest: matrices 0.02 N(0, 1) cut from one block, vectors of ones."""
    random = np.random.default_rng(1)
    block = (0.02 * random.standard_normal(1 << 22, np.float32)).astype(dtype)
    is_shape = lambda node: isinstance(node, tuple)

    def leaf(shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape, dtype)
        return np.resize(np.roll(block, int(random.integers(block.size))), shape)

    tree = shapes(config)
    layer = tree.pop("layers")
    for _ in range(config.layers):
        yield jax.tree.map(lambda shape: leaf(shape[1:]), layer, is_leaf=is_shape)
    yield jax.tree.map(leaf, tree, is_leaf=is_shape)


def drop_pages(folder: str) -> None:
    """Let the system forget what it holds of the files, where it can be told to."""
    for path in Path(folder).glob("*.safetensors"):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    given = sys.argv[1:]
    members, tokens = (int(given[i]) if len(given) > i else d for i, d in ((0, 4), (1, 16)))
    measure.report(run(members=members, tokens=tokens, place=given[2] if len(given) > 2 else None))


if __name__ == "__main__":
    main()
