"""Digests of fixed runs of the four jobs: what must not change when only the house does.

    python -m tests.digests            run them all and compare with tests/golden/digests.json
    python -m tests.digests --write    write that file anew

A digest is the SHA-256 of all records of the journal (without its header, which names the run) and
of the tensors of the newest checkpoint. Runs on integers are the same on every machine; those on
floats on machines of the same processor and jax, which the file names. They run in one thread, as
sums of several threads come in any order.
"""

import hashlib
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

FILE = Path(__file__).with_name("golden") / "digests.json"
TEXT = "def f(x):\n    return x + 1\n\n\nfor i in range(10):\n    print(f(i))\n" * 200
REWARD = """
def near_d(texts):
    return [1 - sum(abs(min(ord(c), 255) - 100) for c in text) / 620 for text in texts]
"""
PROMPTS = "".join(json.dumps({"prompt": word}) + "\n" for word in "one two three four".split())
PRETRAIN = (
    "pretrain --data {text} --n-layers 1 --hidden 16 --pop-size 16 --tokens-per-member 8 "
    "--generations 4"
)
TRAIN = "train --data {text} --model llama-tiny --steps 4 --batch 2 --sequence 16"
FINETUNE = (
    "finetune --model {model} --task {reward}:near_d --data {prompts} --pop-size 4 --prompts 2 "
    "--max-tokens 4 --generations 3 --eval-problems 2"
)
RL = (
    "rl --env CartPole-v1 --pop-size 8 --width 8 --layers 1 --max-steps 20 --generations 3 --no-gif"
)
RUNS = {
    "pretrain int8": f"{PRETRAIN} --precision int8",
    "pretrain compat": f"{PRETRAIN} --precision compat",
    "pretrain int8 stream": f"{PRETRAIN} --precision int8 --engine stream",
    "pretrain float32": f"{PRETRAIN} --precision float32",
    "pretrain bfloat16": f"{PRETRAIN} --precision bfloat16",
    "train adamw": TRAIN,
    "train lowgrad": f"{TRAIN} --optimizer lowgrad --rank 4",
    "train galore 8-bit": f"{TRAIN} --optimizer galore --rank 4 --state-bits 8",
    "train stream": f"{TRAIN} --engine stream --update device",
    "finetune float32": f"{FINETUNE} --weights float32",
    "finetune int8": f"{FINETUNE} --weights int8",
    "finetune grpo": f"{FINETUNE} --method grpo",
    "rl eggroll": f"{RL} --compute float32",
    "rl openes": f"{RL} --compute float32 --method openes",
}
ANYWHERE = ("pretrain int8", "pretrain compat", "pretrain int8 stream")


def springroll(*arguments: str) -> None:
    """Run a command in a process of its own, in one thread of a plain processor."""
    flags = "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX2"
    where = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "springroll", *arguments]
    done = subprocess.run(command, env=os.environ | where, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")


def inputs(folder: Path, *, needs_model: bool = True) -> dict[str, Path]:
    """What the commands of `RUNS` name: a text, a model, a reward and prompts."""
    paths = {
        "text": folder / "text.py",
        "reward": folder / "reward.py",
        "prompts": folder / "prompts.jsonl",
        "model": folder / "model",
    }
    paths["text"].write_text(TEXT)
    paths["reward"].write_text(REWARD)
    paths["prompts"].write_text(PROMPTS)
    if needs_model:
        write_model(folder, paths["text"], paths["model"])
    return paths


def write_model(folder: Path, text: Path, made: Path) -> None:
    """A small model as a Hugging Face folder."""
    springroll(*TRAIN.format(text=text).split(), "--out", str(folder / "base"))
    springroll("export", str(folder / "base"), str(made))


def digests(run: Path) -> dict[str, str]:
    """Of a run folder: {"journal": ..., "checkpoint": ...}."""
    journal = (run / "journal").read_bytes()
    (length,) = struct.unpack_from("<I", journal, 8)
    records = journal[8 + 4 + length + 4 :]
    newest = max((run / "checkpoints").glob("*.safetensors"))
    return {
        "journal": hashlib.sha256(records).hexdigest(),
        "checkpoint": hashlib.sha256(newest.read_bytes()).hexdigest(),
    }


def measured(names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The digests of the runs of these names, made now."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        needs_model = any("{model}" in RUNS[name] for name in names)
        paths = inputs(folder, needs_model=needs_model)
        found = {}
        for i, name in enumerate(names):
            out = folder / f"run-{i}"
            springroll(*RUNS[name].format(**paths).split(), "--out", str(out))
            found[name] = digests(out)
        return found


def machine() -> str:
    """Processor and versions that floats depend on."""
    import jax

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, jax {jax.__version__}"


def main() -> int:
    now = {"machine": machine(), "runs": measured(tuple(RUNS))}
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(now, indent=1) + "\n")
        return 0
    then = json.loads(FILE.read_text())
    print(f"now:  {now['machine']}\nthen: {then['machine']}")
    differing = [name for name in RUNS if now["runs"][name] != then["runs"].get(name)]
    for name in RUNS:
        print(f"{name:22} {'differs' if name in differing else 'equal'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
