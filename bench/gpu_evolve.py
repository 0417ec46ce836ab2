"""Everything of the evolve engine that is worth timing on one accelerator, unattended, in one call.

    python -m bench.gpu_evolve                 # under 10 minutes on one H100-class GPU
    python -m bench.gpu_evolve --small         # the same on a CPU in a minute, for tests

Prints one JSON line per measurement and writes them all, with chip and date, to bench/results/.

- linear: one 8192 x 8192 layer in bfloat16, 1,024 members, factors drawn beforehand, beside the
  plain batch (arXiv 2511.16652v2, Fig. 2a: 91 % of inference; drawn in the pass 69 %).
- int8: training generations of the int8 model beside its own inference.
- members: population forward of 4 residual blocks beside a plain batch and dense members.
"""

from typing import Any

import jax
import jax.numpy as jnp

import springroll as sr
from bench import population_forward, unattended
from springroll.bench import int8_throughput, measure


def linear(width: int, members: int, *, drawn: bool, repeats: int = 9) -> dict[str, Any]:
    """Members per second through one layer, beside the plain batch of as many rows."""
    params = {"w": jnp.zeros((width, width), jnp.bfloat16)}
    es = sr.eggroll(pop_size=members, sigma=0.01, master=None, noise="rademacher")
    state = es.init(jax.random.key(0), params)
    x = jax.random.normal(jax.random.key(1), (members, width)).astype(jnp.bfloat16)

    def score(params: Any, row: Any) -> Any:
        return jnp.sum((row @ params["w"]).astype(jnp.float32))

    plain = jax.jit(jax.vmap(score, (None, 0)))
    forward = jax.jit(lambda s, m, x: sr.evaluate(score, s, m, x, in_axes=0))
    whole = jax.jit(lambda s, x: sr.evaluate(score, s, es.ask(s), x, in_axes=0))
    found = es.ask(state)
    ours = (lambda: forward(state, found, x)) if drawn else (lambda: whole(state, x))
    time = measure.medians(
        measure.interleaved({"ours": ours, "plain": lambda: plain(params, x)}, repeats)
    )
    return measure.record(
        "linear_drawn_beforehand" if drawn else "linear_drawn_in_the_pass",
        ours=members / time["ours"],
        baseline=members / time["plain"],
        ratio=time["plain"] / time["ours"],
        unit="members per second; baseline: plain batch",
        width=width,
        members=members,
        target="ratio >= 0.95",
    )


def measurements(small: bool) -> list[tuple[str, Any]]:
    """Names and calls, the quick ones first."""
    width, members = (256, 64) if small else (8192, 1024)
    sizes = [(2, 16, 32, 8)] if small else [(2, 64, 65536, 100), (6, 256, 8192, 100)]
    return [
        ("linear drawn", lambda: linear(width, members, drawn=True)),
        ("linear in pass", lambda: linear(width, members, drawn=False)),
        ("members", lambda: population_forward.run(repeats=2 if small else 11)),
        *(
            (
                f"int8 {size}",
                lambda size=size: int8_throughput.run(*size, published=None, repeats=5),
            )
            for size in sizes
        ),
    ]


if __name__ == "__main__":
    unattended.script("gpu_evolve", str(__doc__).splitlines()[0], measurements)
