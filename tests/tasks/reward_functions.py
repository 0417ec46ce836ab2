"""Reward functions for the tests, good ones and bad ones."""

import asyncio
import os
import subprocess
import sys
import time

import numpy as np

letters = lambda texts: [len(text) for text in texts]


def with_records(texts, records):
    return [record["worth"] * len(text) for text, record in zip(texts, records, strict=True)]


def verdicts(texts):
    return [{"reward": 0.5, "correct": True, "formatted": False}, {"reward": 2}] * (len(texts) // 2)


def arrays(texts):
    return np.array([len(text) for text in texts], np.float32)


def nothing_to_call():
    return []


def misbehave(texts):
    """What the text says."""
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
    if what == "leave":
        raise SystemExit(1)
    if what == "raise":
        raise KeyError("a key\nof two lines")
    if what == "read":
        return [float(len(sys.stdin.read()))]
    if what == "nan":
        return [float("nan")]
    if what == "two":
        return [1.0, 2.0]
    return [float(len(texts[0]))]


waiting = [0]  # how many calls of `waits` ran at once, after every begin


async def waits(texts):
    waiting.append(waiting[-1] + 1)
    if "forever" in texts:
        await asyncio.sleep(1000)
    if "raise" in texts:
        raise OSError("no answer")
    await asyncio.sleep(0.05)
    waiting.append(waiting[-1] - 1)
    return [float(len(text)) for text in texts]
