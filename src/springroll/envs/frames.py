"""Pictures of episodes, written as GIFs."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from springroll.atomic import replacing
from springroll.envs.environment import Environment, EnvState
from springroll.errors import InputError

SMALLEST = 256  # the longer side, about
AGG: Any = {"backend": "agg", "animation.writer": "pillow"}
LARGEST = (400, 400)  # width and height of pictures that a suite would draw larger


class NoPicture(InputError):
    """An environment cannot be drawn here; the message says why. A run goes on without."""


def draw(environment: Environment, states: Sequence[EnvState]) -> list[np.ndarray]:
    """One picture per state, each (height, width, 3) uint8. The states are on the host or device.

    Raises:
        NoPicture: the environment has no pictures, or what draws them does not work here.
    """
    if environment.frame is None and environment.animate is None:
        raise NoPicture(f"{environment.name} has no pictures")
    try:
        if environment.animate is not None:
            return environment.animate(list(states))
        assert environment.frame is not None
        return [np.asarray(environment.frame(state)) for state in states]
    except Exception as error:  # drawing needs what a machine may lack: a display, EGL, pygame
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise NoPicture(f"{environment.name} cannot be drawn here: {why}") from error


def write_gif(path: Path, frames: Sequence[np.ndarray], fps: float = 25.0) -> None:
    """Replace `path` by an animation that repeats for ever.

    Small pictures are enlarged a whole number of times. GIF counts hundredths of a second, so the
    pace is rounded to one of 100, 50, 33.3, 25, 20, ... pictures per second.
    """
    from PIL import Image

    times = max(1, SMALLEST // max(frames[0].shape[:2]))
    first, *rest = [Image.fromarray(frame.repeat(times, 0).repeat(times, 1)) for frame in frames]
    pause = max(10, round(100 / fps) * 10)  # milliseconds
    with replacing(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=pause, loop=0)


def drawn_gif(save: Callable[[str], object]) -> list[np.ndarray]:
    """The pictures of a GIF that `save(path)` writes, for suites that draw into files only."""
    import matplotlib.pyplot as plt
    from PIL import Image, ImageOps, ImageSequence

    with tempfile.TemporaryDirectory() as folder, plt.rc_context(AGG):
        path = Path(folder) / "drawn.gif"
        save(str(path))
        with Image.open(path) as animation:
            pages = (page.convert("RGB") for page in ImageSequence.Iterator(animation))
            return [np.asarray(ImageOps.contain(page, LARGEST)) for page in pages]
