"""Reward functions for the tests, good ones and bad ones."""

import asyncio
import itertools
import os
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np

letters = lambda texts: [len(text) for text in texts]


def with_records(texts, records):
    return [record["worth"] * len(text) for text, record in zip(texts, records, strict=True)]


def changing(prompts, completions, records):
    for prompt, record in zip(prompts, records, strict=True):
        prompt.pop()
        record.clear()
    return [1.0] * len(completions)


def verdicts(texts):
    return [{"reward": 0.5, "correct": True, "formatted": False}, {"reward": 2}] * (len(texts) // 2)


def arrays(texts):
    return np.array([len(text) for text in texts], np.float32)


def nothing_to_call():
    return []


class Unreadable:
    """Numbers that do not let themselves be read."""

    def item(self):
        return 1 / 0


class Unprintable(Exception):
    def __str__(self):
        raise ZeroDivisionError


def broken():
    yield 1.0
    raise OSError("the line is cut")


def raising(error):
    raise error


ONE = {  # what a text is said to be worth
    "none": lambda: None,
    "word": lambda: "1.0",
    "array": lambda: np.ones(2),
    "dict": lambda: {"points": 1},
    "nan": lambda: float("nan"),
    "inf": lambda: np.float32("inf"),
    "large": lambda: {"reward": 1e300},
    "huge": lambda: 10**400,
    "fraction": lambda: Fraction(10**5000, 3),
    "unreadable": Unreadable,
}
ALL = {  # what comes of all texts together
    "two": lambda: [1.0, 2.0],
    "no list": lambda: 1.0,
    "nothing": lambda: None,
    "text": lambda: "1",
    "empty": lambda: [],
    "endless": lambda: itertools.repeat(1.0),
    "broken generator": broken,
    "broken error": lambda: raising(Unprintable()),
    "raise": lambda: raising(KeyError("a key\nof two lines")),
    "leave": lambda: sys.exit(1),
    "panic": lambda: raising(BaseException("panicked at lib.rs")),
}
calls = []


def misbehave(texts):
    """What the texts say."""
    print("this must not reach the pipe")
    calls.append(len(texts))
    words = [text.partition(" \x1b")[0] for text in texts]
    for word in words:
        if word in ALL:
            return ALL[word]()
    return [ONE[word]() if word in ONE else float(len(word)) for word in words]


def hangs_or_dies(texts):
    """What the text says, to the process that runs this."""
    print("this must not reach the pipe")
    what, _, argument = texts[0].partition(" ")
    if what == "sleep":
        time.sleep(1000)
    if what == "spin":
        while True:
            pass
    if what == "start":  # a process that outlives the call unless its session is killed
        with open(argument, "w") as file:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            file.write(str(child.pid))
        time.sleep(1000)
    if what == "die":
        os._exit(3)
    if what == "hold":  # a child in a session of its own keeps the pipe, and its parent ends
        holding(argument)
        time.sleep(1000)
    if what == "hold-and-die":
        holding(argument)
        os._exit(3)
    if what == "come-back":  # the child answers as well
        os.fork()
        return [float(len(what))]
    if what == "read":
        return [float(len(sys.stdin.read()))]
    return misbehave(texts)


def holding(path):
    """Write the numbers of a grandchild and of its child, both in sessions of their own."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            grandchild = os.fork()
            if grandchild:
                with open(path + ".new", "w") as file:
                    file.write(f"{os.getpid()} {grandchild}")
                os.rename(path + ".new", path)
            time.sleep(1000)
        os._exit(0)
    os.wait()
    while not os.path.exists(path):
        time.sleep(0.01)


waiting = [0]  # how many calls of `waits` ran at once, after every begin


async def waits(texts):
    waiting.append(waiting[-1] + 1)
    if "forever" in texts:
        await asyncio.sleep(1000)
    if "raise" in texts:
        raise OSError("no answer")
    if "leave" in texts:
        sys.exit(1)
    if "cancel" in texts:
        raise asyncio.CancelledError
    await asyncio.sleep(0.05)
    waiting.append(waiting[-1] - 1)
    return [float("nan" if text == "nan" else len(text)) for text in texts]


told = threading.Event()


def patient(texts):
    """Waits until somebody has said that it takes long."""
    assert told.wait(60)
    return [1.0 for _ in texts]
