"""Text of a whole population, beside pure inference and beside factors drawn at every step.

A Llama of 10 million parameters; rank 1, every linear layer and the embeddings perturbed; every
member answers one prompt of 16 tokens with 48. `pure` is the same generator on as many rows of the
unperturbed weights, so it is our own inference as fast as we have it. `redrawn` are the same
decoding steps with the factors of every member drawn anew in every step by `jax.random.normal`, as
engines do that keep no factors; `counted` draws them so with our own counted noise.

    python -m bench.decode

On a CPU seconds are those the process computed, on one core: other processes take none of them.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from springroll.bench import measure
from springroll.compat import edge_jit
from springroll.evolve.eggroll import eggroll
from springroll.evolve.members import Members
from springroll.evolve.perturbation import Factors
from springroll.evolve.rows import Groups
from springroll.generate import Generator, programs
from springroll.generate.forward import split_groups, step
from springroll.models.decoder import Decoder, decoder
from springroll.models.decoder_config import DecoderConfig, llama
from springroll.models.protocols import Generative

SHAPE = llama(320, 880, 5, 8, vocab=256)  # 10.2 million parameters
PROMPT, MOST, STEPS = 16, 48, 8
DRAWN = ("once", "redrawn", "counted", "nothing")


def run(
    members: int = 64, config: DecoderConfig = SHAPE, most: int = MOST, repeats: int = 7
) -> dict[str, Any]:
    """Tokens per second of `members` members with a prompt each, and what drawing costs."""
    model = decoder(config)
    params = model.init(jax.random.key(0))
    asked, drawing_once = ask(params, members)
    rate = rates(model, params, asked, prompts=1, most=most, repeats=repeats)
    loops = {draw: loop(model, params, asked, draw) for draw in DRAWN}
    per_step = {name: members * STEPS / each for name, each in seconds(loops, repeats).items()}
    return measure.record(
        "decode",
        **compared(rate),
        members=members,
        parameters=config.parameters,
        steps_alone=per_step["once"],
        steps_alone_over_pure=per_step["once"] / per_step["nothing"],
        over_redrawn=per_step["once"] / per_step["redrawn"],
        over_redrawn_counted=per_step["once"] / per_step["counted"],
        seconds_of_drawing_once=drawing_once,
        target="ratio >= 0.88, over_redrawn >= 2",
    )


def ask(params: Any, members: int) -> tuple[Members, float]:
    """A generation's members, every matrix and no norm perturbed, and the seconds it took."""
    es = eggroll(pop_size=members, sigma=0.01, roles={"*norm*": "frozen"})
    state = es.init(jax.random.key(1), params)
    asked = jax.block_until_ready(es.ask(state))
    start = time.perf_counter()
    jax.block_until_ready(es.ask(state))
    return asked, time.perf_counter() - start


def rates(
    model: Generative, params: Any, asked: Members, *, prompts: int, most: int, repeats: int
) -> dict[str, float]:
    """Tokens per second of the members ("ours") and of as many unperturbed rows ("pure")."""
    prompt = [[1 + (i + j) % 200 for i in range(PROMPT)] for j in range(prompts)]
    generator = Generator(model=model, end=frozenset(), max_tokens=most)
    taken = seconds(
        {
            "ours": lambda: generator.run(params, asked, prompt),
            "pure": lambda: generator.run(params, None, prompt, copies=asked.size),
        },
        repeats,
    )
    return {name: asked.size * prompts * most / each for name, each in taken.items()}


def compared(rate: dict[str, float]) -> dict[str, Any]:
    """The first fields of a record."""
    ratio = rate["ours"] / rate["pure"]
    unit = "tokens per second"
    return {"ours": rate["ours"], "baseline": rate["pure"], "ratio": ratio, "unit": unit}


def seconds(variants: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each, run in turn; of this process alone where it computes itself.

    The first round counts only if there is no other (`repeats` 0).
    """
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(repeats + 1):
        for name, call in variants.items():
            start = clock()
            jax.block_until_ready(call())
            if round_ or not repeats:
                taken[name].append(clock() - start)
    return measure.medians(taken)


def loop(model: Decoder, params: Any, members: Members, draw: str) -> Callable[[], Any]:
    """`STEPS` steps of all members: factors drawn "once" before them, "redrawn" or "counted".

    "nothing" is perturbed in pure inference. The call returns the last tokens.
    """
    perturbation, rows = members.perturbation, members.size
    plain = draw == "nothing"
    program = programs.Program(
        model=model,
        dtype=jnp.dtype(jnp.float32),
        end=(),
        max_tokens=STEPS,
        length=PROMPT + MOST,
        sampled=False,
        log_probabilities=False,
    )
    pairs = members.pairs.shape[0]
    sign = jnp.tile(jnp.asarray(perturbation.signs, jnp.float32), (pairs, 1))
    weights = programs.step_weights(program, params)
    stay = jnp.arange(pairs, dtype=jnp.int32)

    def take(factors: Factors) -> Groups:
        of_factors = dataclasses.replace(members, factors=factors)
        return split_groups(programs.row_groups(program, of_factors, stay))

    drawn_once = None if plain else jax.jit(take)(members.drawn())

    def groups_at(now: Array) -> Groups | None:
        if draw == "once" or plain:
            return drawn_once
        if draw == "counted":
            epoch = members.epoch + (now >> 31)  # the same numbers, which XLA does not know
            return take(perturbation.draw(members.seed, epoch, members.pairs))
        return take(_threefry(members, now))

    def written(memory: Any, weights: Any) -> Any:
        def body(i: Array, carry: Any) -> Any:
            memory, token = carry
            clock = i + PROMPT
            groups = groups_at(i)
            seen = jnp.full(rows, clock, jnp.int32)
            logits, new = step(model, groups, weights, sign, token, memory, seen, clock)
            token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            return model.keep(memory, new, clock + (token[0] >> 31)), token

        return lax.fori_loop(0, STEPS, body, (memory, jnp.zeros(rows, jnp.int32)))

    compiled = edge_jit(written, donate_argnums=0)
    held = [programs.memory(program, rows)]

    def call() -> Any:
        held[0], token = compiled(held[0], weights)
        return token

    return call


def _threefry(members: Members, now: Array) -> Factors:
    """Factors from a key per member and parameter: both members of a pair draw the same."""
    perturbation, rank = members.perturbation, members.perturbation.rank
    signs = len(perturbation.signs)
    drawn: Factors = {}
    for number, leaf in enumerate(perturbation.evolved):
        shared = leaf.shape[: leaf.stacked]
        key = jax.random.fold_in(jax.random.key(number), now)
        keys = jax.vmap(lambda i, key=key: jax.random.fold_in(key, i // signs))(
            jnp.arange(members.size)
        )
        size = (sum(leaf.side("m")) + sum(leaf.side("n"))) * rank
        flat = jax.vmap(lambda key, shape=(*shared, size): jax.random.normal(key, shape))(keys)
        flat = jnp.moveaxis(flat, 0, leaf.stacked)
        # Each member's own numbers are drawn; the first of a pair's are read.
        flat = flat.reshape(*shared, -1, signs, size).sum(axis=leaf.stacked + 1) / signs
        cut = sum(leaf.side("m")) * rank
        lead = flat.shape[:-1]
        drawn[leaf.path] = (
            flat[..., :cut].reshape(*lead, *leaf.side("m"), rank),
            flat[..., cut:].reshape(*lead, *leaf.side("n"), rank),
        )
    return drawn


def main(run: Callable[[int], dict[str, Any]] = run) -> None:
    measure.pin_one_core()
    for members in (64, 256):
        measure.report(run(members))


if __name__ == "__main__":
    main()
