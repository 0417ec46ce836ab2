"""Objectives for the tests, good ones and bad ones. What goes wrong is said by the seed."""

import os
import random
import sys
import time

import numpy as np


def initial_weights(seed):
    draw = np.random.default_rng(seed).normal(size=(6, 4)).astype(np.float32)
    return {"b": [np.zeros(4, np.float32)], "a": draw, "c": (np.float32(1.5),)}


INPUTS = np.arange(30, dtype=np.float32).reshape(5, 6) / 30


def distance(weights, seed):
    return -float(np.square(INPUTS @ weights["a"] - 1 + weights["b"][0]).sum())


def without_a_seed(weights):
    weights["a"] *= 2  # what a call does to its weights is its own
    return np.float32(weights["a"].sum() + weights["c"][0])


def draws(weights, seed=0):
    """From generators of its own, of NumPy and of Python."""
    return np.random.default_rng(seed).random() + np.random.random() + random.random()  # noqa: NPY002


WRONG = {
    1: lambda weights: os._exit(3),
    2: lambda weights: {}["a key\nof two lines"],
    3: lambda weights: sys.exit(1),
    4: lambda weights: float("nan"),
    5: lambda weights: -np.inf,
    6: lambda weights: weights["a"][0],
    7: lambda weights: "1.0",
    8: lambda weights: time.sleep(1000),
    9: lambda weights: os.kill(os.getpid(), 9),
    10: lambda weights: says_that_it_sleeps(),
    11: lambda weights: 10**400,
    12: lambda weights: None,
    13: lambda weights: 1e300,
    14: lambda weights: (1 / 0 for _ in weights),
}


def says_that_it_sleeps():
    open(os.environ["ASLEEP"], "w").close()
    time.sleep(1000)


def misbehaves(weights, seed):
    print("this must not reach the pipe")
    return WRONG[seed](weights) if seed in WRONG else distance(weights, seed)


def dies_at_once(weights, seed):
    os._exit(1)


def hangs(weights, seed):
    while True:
        pass


def says_nan(weights, seed):
    return float("nan")


def fails_but_for_the_centre(weights, seed):
    if abs(weights["c"][0] - 1.5) > 1e-7:
        raise ValueError("no members, please")
    return 1.0


def takes_nothing():
    return 1.0


def float64(seed):
    return {"layer": {"w": np.zeros((2, 2))}}


def raises(seed):
    raise OSError("no such weights")


def hanging_start(seed):
    time.sleep(1000)
