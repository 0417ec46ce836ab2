"""Host memory while the store of a streamed run is built: its peak beside the bytes of the store.

    python -m bench.store_building [MODEL] [UPDATE]

MODEL is a name (default: llama-350m with 256 tokens, random weights) or a Hugging Face folder;
UPDATE is host (default: AdamW in float32 beside bfloat16 halves) or device (AdamW in 8 bits). The
peak is the kernel's (VmHWM) of a fresh process, less what it had before and after another store, of
a tiny model, had loaded all code; what is resident at the end shows that all pages are there.
"""

import dataclasses
import gc
import json
import subprocess
import sys
import time
from typing import Any

from springroll.bench.process_memory import forget_peak, process_bytes


def built(model: str, update: str) -> dict[str, float]:
    """Bytes of a store, and of the peak of this process while it is built."""
    import jax

    from springroll.train import streamed
    from springroll.train.build import language_model
    from springroll.train.config import TrainConfig
    from springroll.trees import tree_bytes

    how: dict[str, Any] = (
        {"update": "device", "state_bits": 8} if update == "device" else {"update": "host"}
    )
    config = TrainConfig(
        model=model,
        engine="stream",
        dtype="bfloat16",
        batch=1,
        sequence=16,
        clip=None,
        device_memory="512MiB",
        **how,
    )
    one = jax.local_devices()[:1]
    tiny = dataclasses.replace(config, model="llama-tiny")
    streamed.stream_learner(tiny, language_model(tiny), one)[0].init(jax.random.key(0))
    learner, _ = streamed.stream_learner(config, language_model(config), one)
    gc.collect()
    before, began = process_bytes("VmRSS"), time.perf_counter()
    forget_peak()
    state = learner.init(jax.random.key(0))
    seconds = time.perf_counter() - began
    size = tree_bytes((state.params, state.optimizer))
    peak = process_bytes("VmHWM") - before
    there = process_bytes("VmRSS") - before
    return {"store_bytes": size, "peak_bytes": peak, "resident_bytes": there, "seconds": seconds}


def main(model: str = "llama-350m", update: str = "host") -> None:
    """Measure in a fresh process and print one line."""
    command = [sys.executable, "-m", "bench.store_building", "--here", model, update]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ratio = found["peak_bytes"] / found["store_bytes"]
    print(json.dumps({"name": f"store_building {model} {update}", **found, "ratio": ratio}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        print(json.dumps(built(*sys.argv[2:])))
    else:
        main(*sys.argv[1:])
