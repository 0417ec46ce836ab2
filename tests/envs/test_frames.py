"""Episodes become GIFs, and what cannot be drawn says why."""

import dataclasses

import numpy as np
import pytest
from PIL import Image, ImageSequence

from springroll.envs.cartpole import cartpole
from springroll.envs.frames import LARGEST, NoPicture, draw, drawn_gif, write_gif
from springroll.errors import InputError

FRAMES = [np.full((10, 20, 3), shade, np.uint8) for shade in (0, 120, 240)]


def pages(path):
    with Image.open(path) as animation:
        return [np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(animation)]


def test_what_is_written_is_read(tmp_path):
    write_gif(tmp_path / "episode.gif", FRAMES, fps=20)
    shown = pages(tmp_path / "episode.gif")
    assert [page.shape for page in shown] == [(120, 240, 3)] * 3  # twelve times as large
    for page, frame in zip(shown, FRAMES, strict=True):
        np.testing.assert_allclose(page, frame[0, 0, 0], atol=2)
    with Image.open(tmp_path / "episode.gif") as animation:
        assert animation.info["duration"] == 50 and animation.info["loop"] == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "episode.gif"]


@pytest.mark.parametrize("fps, pause", [(30, 30), (50, 20), (1000, 10), (2, 500)])
def test_pace_in_hundredths(tmp_path, fps, pause):
    write_gif(tmp_path / "a.gif", FRAMES, fps)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.info["duration"] == pause


def test_a_failure_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.gif"
    write_gif(path, FRAMES)
    before = path.read_bytes()
    with pytest.raises((TypeError, ValueError, OSError)):
        write_gif(path, [FRAMES[0], np.zeros((2, 2, 2, 7), np.float32)])
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_drawing_state_by_state():
    states = [np.array([x, 0, 0, 0]) for x in (-1.0, 0.0, 1.0)]
    frames = draw(cartpole(), states)
    assert len(frames) == 3 and all(frame.dtype == np.uint8 for frame in frames)
    assert (frames[0] != frames[2]).any()


def test_whole_episodes_are_preferred():
    env = dataclasses.replace(cartpole(), animate=lambda states: [FRAMES[0]] * len(states))
    assert len(draw(env, [None, None])) == 2


def test_no_picture_says_why():
    with pytest.raises(NoPicture, match="CartPole-v1 has no pictures"):
        draw(dataclasses.replace(cartpole(), frame=None), [])

    def fails(state):
        raise RuntimeError("no display\nand more lines")

    with pytest.raises(NoPicture, match="CartPole-v1 cannot be drawn here: RuntimeError: no disp"):
        draw(dataclasses.replace(cartpole(), frame=fails), [None])
    assert issubclass(NoPicture, InputError)


def test_pictures_of_suites_that_draw_into_files():
    large = [frame.repeat(100, 0).repeat(100, 1) for frame in FRAMES]

    def save(path):
        first, *rest = [Image.fromarray(frame) for frame in large]
        first.save(path, save_all=True, append_images=rest)

    drawn = drawn_gif(save)
    assert len(drawn) == 3
    assert all(max(frame.shape) <= max(LARGEST) for frame in drawn)
    np.testing.assert_allclose(drawn[1], 120, atol=2)
