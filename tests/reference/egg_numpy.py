"""The integer minGRU and its evolution, slowly and obviously, in NumPy.

One member, one token, one explicit perturbation and one pair's vote at a time; int64 throughout, so
nothing can overflow. Written from the description in arXiv 2511.16652v2, appendices G and H (class
`Published`), and from the docstrings of springroll (class `Ours`).

Letters: D hidden, L layers, r rank. A matrix W (out, in) is perturbed by A (out, r) and B (in, r),
a vector by numbers of its own shape.
"""

import itertools
import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

LOW, HIGH = -127, 127
MATRICES = ("w_f", "u_f", "w_h", "u_h", "w_up", "w_down")


class Matrix(NamedTuple):
    """A matrix of one member: W and its perturbation, not yet added."""

    w: np.ndarray
    a: np.ndarray
    b: np.ndarray
    sign: int


def clip(x):
    return np.clip(x, LOW, HIGH)


def halves_away(x, bits):
    """x / 2**bits, halves rounded away from zero."""
    size = (2 * np.abs(x) + (1 << bits)) // (2 << bits)
    return np.sign(x) * size


def power_of_four(n):
    return n == 4 ** round(math.log(n, 4))


# --- the two semantics ---------------------------------------------------------------------------


@dataclass
class Published:
    """Floors everywhere, the raw mean in the norm, a loss in whole sixteenths of a bit."""

    sigma_shift: int = 4

    def matmul(self, x, m):
        total = m.w @ x + self._floored(m.sign * (x @ m.b[:, 0]) * m.a[:, 0])
        return clip(total // (16 * int(math.sqrt(m.w.shape[1]))))

    def lookup(self, m, row):
        return clip(m.w[row] + self._floored(m.sign * m.a[row, 0] * m.b[:, 0]))

    def vector(self, v, noise, sign):
        return clip(v + self._floored(sign * noise))

    def _floored(self, product):
        return product >> (4 + self.sigma_shift)

    def norm(self, x, weight):
        mean = max(1, np.abs(x).sum()) // len(x)
        product = x * weight
        if mean == 0:  # row 0 of the published table
            return np.where(product == 0, -1, -2)
        return clip(product // mean)

    def gate(self, f, v):
        return ((f + 127) * v) >> 8

    def loss(self, logits, label):
        y = logits + 128
        total = sum(int(16 * 2 ** (int(v) / 16)) for v in y)
        return int(16 * math.log2(total / 16)) - int(y[label])


@dataclass
class Ours:
    """Rounding to nearest, the reciprocal of a safe mean, a loss in 1/256 bits."""

    sigma: float = 2.0**-4
    rank: int = 1

    def matmul(self, x, m):
        n = m.w.shape[1]
        total = m.w @ x
        for j in range(self.rank):
            total = total + self._scaled(x @ m.b[:, j], m.sign) * m.a[:, j]
        if power_of_four(n):
            return clip(halves_away(total, 4 + round(math.log2(math.sqrt(n)))))
        factor = np.float32(1 / (16 * math.sqrt(n)))
        return clip(np.rint(total.astype(np.float32) * factor).astype(np.int64))

    def lookup(self, m, row):
        total = m.w[row]
        for j in range(self.rank):
            total = total + self._scaled(m.a[row, j] * m.b[:, j], m.sign)
        return clip(total)

    def _scaled(self, t, sign):
        scale = np.float32(1 / (16 * math.sqrt(self.rank)))
        scaled = np.asarray(t).astype(np.float32) * np.float32(sign * self.sigma) * scale
        return np.rint(scaled).astype(np.int64)

    def vector(self, v, noise, sign):
        moved = noise.astype(np.float32) * np.float32(sign * self.sigma)
        return clip(v + np.rint(moved).astype(np.int64))

    def norm(self, x, weight):
        count = len(x)
        inverse = 65536 * count // max(np.abs(x).sum(), count)
        return clip(halves_away(x * weight * inverse, 16))

    def gate(self, f, v):
        return halves_away((f + 127) * v, 8)

    def loss(self, logits, label):
        y = logits + 128
        total = sum(self.exp2(int(v)) for v in y)
        return self.log2(total) - 6 * 256 - 16 * int(y[label])

    @staticmethod
    def exp2(y):
        """64 * 2**(y / 16), with a cubic for the fraction, cut to an integer."""
        j, exponent = y % 16, y // 16
        mantissa = 1 + ((155 * j + 7510) * j + 364294) * j / 2**23
        return int(64 * mantissa * 2**exponent)

    @staticmethod
    def log2(total):
        """256 * log2(total), with a cubic of 12 bits of the fraction."""
        exponent = total.bit_length() - 1
        f = ((total << 31 - exponent) >> 19) & 0xFFF
        bend = f * (4096 - f) >> 12
        fraction = f + (bend * (1724 - (641 * f >> 12)) >> 12)
        return 256 * exponent + (fraction + 8 >> 4)


# --- the model -----------------------------------------------------------------------------------


def token_step(n, member, token, state):
    """One token of one member: state (L, D) -> logits (256,) and the new state."""
    if token == 0:
        state = np.zeros_like(state)
    x = n.lookup(member["embed"], token)
    new = []
    for layer, s in zip(member["blocks"], state, strict=True):
        y = n.norm(x, layer["norm_gru"])
        f = clip(n.matmul(y, layer["w_f"]) + n.matmul(s, layer["u_f"]) + layer["bias_f"])
        g = n.gate(f, s)
        h = clip(n.matmul(y, layer["w_h"]) + n.matmul(g, layer["u_h"]) + layer["bias_h"])
        s = s + n.gate(f, h - s)
        assert np.abs(g).max() <= HIGH and np.abs(s).max() <= HIGH
        x = clip(s + x)
        up = n.matmul(n.norm(x, layer["norm_ffn"]), layer["w_up"])
        x = clip(n.matmul(up, layer["w_down"]) + x)
        new.append(s)
    return n.matmul(n.norm(x, member["norm_out"]), member["head"]), np.stack(new)


def score(n, member, tokens, state):
    """(fitness, new state): minus the loss of tokens[1:] one after the other."""
    total = 0
    for token, label in itertools.pairwise(tokens):
        logits, state = token_step(n, member, int(token), state)
        total += n.loss(logits, int(label))
    return -total, state


def member_of(n, params, noise, sign):
    """The parameters of one member, layer by layer.

    `params` holds one array per name (those of `blocks` with layers first), `noise` per path a list
    with one entry per layer (one entry for an unstacked parameter): (A, B) or a vector.
    """

    def perturbed(value, drawn):
        if isinstance(drawn, tuple):
            a, b = drawn
            return Matrix(value, a, b, sign)
        return n.vector(value, drawn, sign)

    top = {
        name: perturbed(value, noise[name][0]) for name, value in params.items() if name != "blocks"
    }
    layers = len(params["blocks"]["bias_f"])
    blocks = [
        {
            name: perturbed(value[i], noise[f"blocks/{name}"][i])
            for name, value in params["blocks"].items()
        }
        for i in range(layers)
    ]
    return top | {"blocks": blocks}


# --- the published noise -------------------------------------------------------------------------


def pair_hash(x):
    return ((x >> 16) ^ x) * 0x45D9F3B % 2**32


def table_slice(table, word, pair, length):
    """A contiguous slice at (word XOR hash) modulo the size, moved back where it would run over."""
    start = (word ^ pair_hash(pair)) & (len(table) - 1)
    start = min(start, len(table) - length)
    return table[start : start + length].astype(np.int64)


def published_noise(table, words, pair, params):
    """Path -> one entry per layer; `words` maps a path to a list of one word per layer."""
    flat = {f"blocks/{name}": list(v) for name, v in params["blocks"].items()}
    flat |= {name: [value] for name, value in params.items() if name != "blocks"}

    def entry(word, value):
        if value.ndim == 1:
            both = table_slice(table, word, pair, 2 * len(value))
            return both[: len(value)] * both[len(value) :]
        m, n = value.shape
        numbers = table_slice(table, word, pair, m + n)
        return numbers[n:, None], numbers[:n, None]

    return {
        path: [entry(w, v) for w, v in zip(words[path], values, strict=True)]
        for path, values in flat.items()
    }


# --- the update ----------------------------------------------------------------------------------


def votes(fitness):
    """sign(plus - minus) of every pair."""
    return [int(np.sign(plus - minus)) for plus, minus in np.reshape(fitness, (-1, 2))]


def total_votes(pair_votes, noises, path, layer):
    """Z of one parameter of one layer: pair after pair, component after component."""
    total = 0
    for vote, noise in zip(pair_votes, noises, strict=True):
        drawn = noise[path][layer]
        total = total + vote * (drawn[0] @ drawn[1].T if isinstance(drawn, tuple) else drawn)
    return total


def threshold_level(t, alpha, decay):
    alpha_t = 1 / ((2**alpha - 1) * t / decay + 1)
    return int(16 * NormalDist().inv_cdf(1 - alpha_t / 2))


def threshold_move(total, noise, pairs, level, *, move_ties):
    """+-1 where |Z| * 16 >= level * int(sqrt(pairs)) * noise."""
    enough = np.abs(total) * 16 >= level * int(math.sqrt(pairs)) * noise
    direction = np.where(total > 0, 1, -1) if move_ties else np.sign(total)
    return np.where(enough, direction, 0)


@dataclass
class Residual:
    """Momentum on z and a remainder below one step, in fixed point, for one parameter."""

    lr: float
    momentum: float
    decay: float
    m: np.ndarray
    r: np.ndarray

    def move(self, total, noise, pairs, t):
        keep = round(256 * (1 - self.momentum))
        beta = 1 - keep / 256
        rate = round(1024 * self.lr * math.sqrt((1 + beta) / (1 - beta)) * 8)
        horizon = min(round(self.decay), 2**30 // rate)
        self.m = self.m + halves_away((self._units(total, noise, pairs) - self.m) * keep, 8)
        self.m = np.clip(self.m, -32767, 32767)
        self.r = self.r + halves_away(self.m * (rate * horizon // (horizon + t)), 10)
        steps = halves_away(self.r, 15)
        self.r = self.r - steps * 2**15
        return steps

    @staticmethod
    def _units(total, noise, pairs):
        """z * 4096 through an integer ratio of 10 bits, at most 8 * 4096."""
        ratio = 4096 / (noise * math.sqrt(pairs))
        down = max(0, 10 - math.ceil(math.log2(ratio)))
        multiplier = round(ratio * 2**down)
        most = 2**30 // multiplier
        return np.clip(halves_away(np.clip(total, -most, most) * multiplier, down), -32768, 32768)


# --- a generation --------------------------------------------------------------------------------


def evaluate(n, params, noises, tokens, states):
    """Fitness and new states of all members; member 2 p has noise p as it is, 2 p + 1 negated."""
    fitness, new = [], []
    for i, (text, state) in enumerate(zip(tokens, states, strict=True)):
        member = member_of(n, params, noises[i // 2], 1 - 2 * (i % 2))
        value, state = score(n, member, text, state)
        fitness.append(value)
        new.append(state)
    return np.array(fitness), np.stack(new)


def moved(params, fitness, noises, move):
    """The parameters after one step; `move(path, layer, total)` is the rule of one parameter."""
    ballots = votes(fitness)

    def step(path, layer, value):
        return clip(value + move(path, layer, total_votes(ballots, noises, path, layer)))

    blocks = {
        name: np.stack([step(f"blocks/{name}", i, v) for i, v in enumerate(stack)])
        for name, stack in params["blocks"].items()
    }
    top = {name: step(name, 0, v) for name, v in params.items() if name != "blocks"}
    return top | {"blocks": blocks}


def as_integers(params):
    """int64 copies of a tree of arrays of two levels."""
    wide = lambda x: np.asarray(x).astype(np.int64)
    return {
        name: {k: wide(v) for k, v in value.items()} if name == "blocks" else wide(value)
        for name, value in params.items()
    }
