"""What fine-tuning gained on held-out problems: the first and the last weights of a run answer the
same ones greedily, so that the difference has the standard error of its pairs."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from springroll.atomic import read_json, write_json
from springroll.finetune.config import FinetuneConfig
from springroll.run.folder import RunFolder
from springroll.run.job import OpenRun

Row: TypeAlias = dict[str, float]  # of metrics.jsonl
FILE = "held_out.json"
PROBLEMS = 512  # that are judged, at most: more than a run's own validations answer


def judged_once(out: Path) -> dict[str, Any]:
    """Of the weights before and after the run in `out`: the reward of every held-out answer, and
    figures. Kept in the run folder."""
    if not (out / FILE).exists():
        write_json(out / FILE, judged(out))
    return read_json(out / FILE)


def judged(out: Path) -> dict[str, Any]:
    """{"before": {"rewards": [...], "accuracy": ...}, "after": ...}"""
    from springroll.finetune import job
    from springroll.finetune.setup import prepare

    folder = RunFolder.resume(out)
    config = replace(folder.options(FinetuneConfig), eval_problems=PROBLEMS)
    run = OpenRun(str(out), folder, config)
    setup = prepare(config)
    # A repeated problem says nothing new, and the standard error would be too small with it.
    asked = setup.held_out
    once = {tuple(prompt): i for i, prompt in enumerate(asked.prompts)}.values()
    problems, prompts = ([each[i] for i in once] for each in (asked.problems, asked.prompts))
    setup = replace(setup, held_out=asked._replace(problems=problems, prompts=prompts))
    found = {}
    for name in ("before", "after"):
        params = setup.params() if name == "before" else job.loaded(run, setup).params
        generated = setup.greedy.run(params, None, setup.held_out.prompts)
        of_all = setup.judged(setup.held_out, generated)
        found[name] = {"rewards": of_all.reward.reshape(-1).tolist(), **of_all.figures()}
    setup.task.close()
    return found


def gain(found: Mapping[str, Any]) -> tuple[float, float]:
    """(mean, standard error) of what a held-out problem earns more than before."""
    pairs = zip(found["before"]["rewards"], found["after"]["rewards"], strict=True)
    more = [after - before for before, after in pairs]
    mean = sum(more) / len(more)
    variance = sum((x - mean) ** 2 for x in more) / max(1, len(more) - 1)
    return mean, math.sqrt(variance / len(more))


def from_to(found: Mapping[str, Any], name: str, spelling: str) -> str:
    """A figure before and after, such as `0.41 → 0.83`."""
    return " → ".join(spelling.format(found[at][name]) for at in ("before", "after"))


def validations(out: Path) -> list[Row]:
    """The rows of a run's metrics that have held-out figures."""
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "valid_reward" in row]
