"""Entropies of a text as the definitions read, byte by byte; the bytes of a stream one by one."""

import math
from collections import Counter
from itertools import pairwise


def unigram_bits(text: bytes) -> float:
    counts = Counter(text)
    return sum(n * -math.log2(n / len(text)) for n in counts.values()) / len(text)


def bigram_bits(text: bytes) -> float:
    """What a table of P(next | previous), counted on the text itself, pays per byte."""
    pairs = list(pairwise(text))
    count, before = Counter(pairs), Counter(a for a, _ in pairs)
    return sum(-math.log2(count[p] / before[p[0]]) for p in pairs) / len(pairs)


def stream(text: bytes, number: int, num_streams: int, tokens: int, generation: int) -> bytes:
    """T + 1 bytes of one stream: its slab read round and round, T further at every generation."""
    length = len(text) // num_streams
    slab = text[number * length : (number + 1) * length]
    return bytes(slab[(generation * tokens + i) % length] for i in range(tokens + 1))
