"""Many measurements in one call that nobody watches: each is reported as it ends, all are kept."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from springroll.bench import measure

Call = Callable[[], dict[str, Any]]


def script(
    name: str, summary: str, measurements: Callable[[bool], Sequence[tuple[str, Call]]]
) -> None:
    """The command line of a script: `--small` and `--out`.

    Prints one JSON line per measurement and writes them all to OUT/NAME-CHIP-DATE.json. What does
    not fit in memory is noted, and the rest goes on.

    Args:
        measurements: whether at a small size -> (name, call) in order.
    """
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, to test the script")
    beside = Path(sys.argv[0]).parent / "results"
    parser.add_argument("--out", type=Path, default=beside, help="folder for the JSON file")
    options = parser.parse_args()
    results = []
    for each, call in measurements(options.small):
        try:
            results.append(call())
        except jax.errors.JaxRuntimeError as error:
            results.append({"name": each, "failed": str(error).splitlines()[0]})
        measure.report(results[-1])
    chip = re.sub(r"[^a-z0-9]+", "-", jax.devices()[0].device_kind.lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    done = [result["date"] for result in results if "date" in result]
    path = options.out / f"{name}-{chip}-{max(done, default='failed')}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"wrote {path}")
