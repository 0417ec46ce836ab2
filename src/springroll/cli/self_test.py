"""The five-second self-test of `springroll doctor`: does what matters most hold on this machine?"""

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from springroll.train.pretrain import PretrainConfig

TOLERANCE = 0.02  # an accelerator's default matrix precision; on a CPU it is 1e-6
TEXT = b"".join(b"def double_%d(x):\n    return %d * x\n\n" % (i, 2 * i) for i in range(200))


class Check(NamedTuple):
    """One thing that was tried."""

    name: str
    passed: bool
    detail: str


def self_test() -> list[Check]:
    """Run every check; one that raises has failed."""
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "thin weights equal dense ones": thin_equals_dense,
        "an int8 run, stopped and resumed, ends with the same bytes": resumed_equals_undisturbed,
    }
    return [_tried(name, check) for name, check in checks.items()]


def thin_equals_dense() -> tuple[bool, str]:
    """A factored function on base + thin term against the function on the formed weight."""
    import jax
    import jax.numpy as jnp

    import springroll as sr

    keys = jax.random.split(jax.random.key(0), 4)
    normal = lambda i, *shape: jax.random.normal(keys[i], shape)
    w = sr.Factored(base=normal(0, 64, 32), left=normal(1, 64, 2), right=normal(2, 32, 2))
    x = normal(3, 8, 64)
    fn = lambda w, x: jnp.tanh(x @ w)
    error = float(jnp.abs(sr.factored(fn)(w, x) - fn(w.dense(), x)).max())
    return error < TOLERANCE, f"largest difference {error:.1e}"


def resumed_equals_undisturbed() -> tuple[bool, str]:
    """Two generations of a tiny int8 model, in one go and in two: journal and checkpoint."""
    from springroll.train.pretrain import build

    with tempfile.TemporaryDirectory() as place:
        text = Path(place, "text")
        text.write_bytes(TEXT)
        config = PretrainConfig(
            data=str(text),
            hidden=8,
            pop_size=16,
            tokens=4,
            streams=4,
            valid_streams=2,
            valid_tokens=32,
            generations=2,
            devices=1,
        )
        made = build(config)
        _train(Path(place, "whole"), config, made.task)
        _train(Path(place, "parts"), replace(config, generations=1), made.task)
        _train(Path(place, "parts"), config, made.task)
        files = ("journal", "checkpoints/000000002.safetensors")
        differing = [
            name
            for name in files
            if Path(place, "whole", name).read_bytes() != Path(place, "parts", name).read_bytes()
        ]
    return not differing, f"these differ: {', '.join(differing)}" if differing else "2 generations"


def _train(path: Path, config: PretrainConfig, task: Any) -> None:
    from rich.console import Console

    from springroll.train.loop import run
    from springroll.train.run_folder import RunFolder

    new = not path.exists()
    folder = RunFolder.create(path, config) if new else RunFolder.resume(path)
    run(config, task, folder, console=Console(file=io.StringIO()))


def _tried(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        return Check(name, *check())
    except Exception as error:  # whatever is broken here is what the doctor is asked to find
        return Check(name, False, f"{type(error).__name__}: {error}")
