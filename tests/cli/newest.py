"""The newest weights of a run, as the commands read them."""

from typing import Any, NamedTuple

from springroll.cli.jobs import open_path
from springroll.run.weights import load_weights


class Newest(NamedTuple):
    config: Any
    params: Any


def newest_weights(path):
    job, run = open_path(str(path))
    return Newest(run.config, load_weights(run, job.weights(run)).params)
