"""Does the Countdown verifier agree with brute force, and how long do hostile texts keep it?

    python -m bench.verifier

Agreement: 10,000 generated problems of three numbers. Brute force writes down all 192 expressions
that use each number once and computes them in pairs of whole numbers, with none of the verifier's
code. Of every problem are judged the solution it was made with, an expression that brute force
finds to hit the target and one that it finds to miss, and one with a wrong number in it.

Hostile texts, with every place an answer may stand in: each must be refused within a millisecond.
"""

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from springroll.bench import measure
from springroll.tasks.answers import INSTRUCTIONS
from springroll.tasks.countdown import countdown_task, judge

LIMIT = 1.0  # milliseconds

MEGABYTE = 10**6
HOSTILE = {
    "power": "9**9**9",
    "power of powers": "**".join(["9"] * 60),
    "floor division": "9//2",
    "call": "print(1)",
    "import": "__import__('os').system('true')",
    "name": "a+b",
    "attribute": "(1).real",
    "comparison": "1<2",
    "tuple": "(1,2)",
    "hexadecimal": "0x10",
    "scientific": "1e9",
    "underscore": "1_000",
    "decimal": "1.5",
    "digits of another script": "\u0661+\u0662",
    "division by zero": "1/(2-2)",
    "adjacent brackets": "2(3)",
    "nothing": "",
    "zero byte": "1+\x001",
    "64 brackets": "(" * 64 + "1" + ")" * 64,
    "64 minus signs": "-" * 64 + "1",
    "a megabyte of brackets": "(" * MEGABYTE,
    "a megabyte of minus signs": "-" * MEGABYTE,
    "a megabyte of digits": "9" * MEGABYTE,
    "a megabyte of spaces": " " * MEGABYTE,
    "a megabyte of sums": "1+" * (MEGABYTE // 2) + "1",
    "a megabyte of boxes": "\\boxed{" * (MEGABYTE // 7),
    "a megabyte of thoughts": "<think>" * (MEGABYTE // 7),
    "200 digits": "9" * 200,
}
PLACES = {
    "whole": "{}",
    "hash": "#### {}",
    "last": "so\n{}",
    "boxed": "\\boxed{{{}}}",
    "tag": "<answer>{}</answer>",
}
assert PLACES.keys() == INSTRUCTIONS.keys()


class Computed(NamedTuple):
    """An expression and its value top / bottom; bottom is 0 where something is divided by 0."""

    text: str
    top: int
    bottom: int


def run(problems: int = 10_000, repeats: int = 5) -> dict[str, Any]:
    """`ours`: milliseconds that the slowest hostile text takes; `baseline`: the limit."""
    checks, wrong, seconds = agreement(problems)
    times = refusals(repeats)
    slowest = max(times, key=lambda name: times[name])
    return measure.record(
        "verifier",
        ours=times[slowest],
        baseline=LIMIT,
        ratio=LIMIT / times[slowest],
        unit="milliseconds, slowest hostile text; baseline: the limit",
        slowest=slowest,
        problems=problems,
        checks=checks,
        disagreements=wrong,
        microseconds_per_check=1e6 * seconds / checks,
        milliseconds={name: round(t, 4) for name, t in times.items()},
    )


def agreement(problems: int, seed: int = 0) -> tuple[int, int, float]:
    """(texts judged, those judged otherwise than by brute force, seconds of judging)."""
    task = countdown_task(seed=seed, largest=25, target=100)
    assert task.worked is not None
    checks = wrong = 0
    seconds = 0.0
    for index in range(problems):
        worked = task.worked(index)
        reference = worked.problem.reference
        for text, right in candidates(worked.answer, reference, random.Random(index)):
            start = time.perf_counter()
            verdict = judge(text, reference, "whole", "exact")
            seconds += time.perf_counter() - start
            checks += 1
            wrong += verdict.correct != right
    return checks, wrong, seconds


def candidates(
    solution: str, reference: dict[str, Any], rng: random.Random
) -> Iterator[tuple[str, bool]]:
    """(text, whether it is right) of one problem."""
    numbers, target = reference["numbers"], reference["target"]
    found = list(every_expression(numbers))
    hits = [e for e in found if e.bottom and e.top == target * e.bottom]
    misses = [e for e in found if not e.bottom or e.top != target * e.bottom]
    yield solution, bool(hits)  # a problem without hits would not be solvable
    if hits:
        hit = rng.choice(hits).text
        yield hit, True
        yield hit.replace(str(numbers[0]), str(numbers[0] + 1)), False
    if misses:
        yield rng.choice(misses).text, False


def every_expression(numbers: list[int]) -> Iterator[Computed]:
    """All orders of three numbers, both ways to bracket them, all operations."""
    for a, b, c in itertools.permutations(Computed(str(n), n, 1) for n in numbers):
        for first in "+-*/":
            left, right = joined(a, first, b), joined(b, first, c)
            for second in "+-*/":
                yield joined(left, second, c)
                yield joined(a, second, right)


def joined(x: Computed, sign: str, y: Computed) -> Computed:
    """(x sign y) in pairs of whole numbers."""
    text = f"({x.text}{sign}{y.text})"
    if not x.bottom or not y.bottom:
        return Computed(text, 0, 0)
    if sign == "*":
        return Computed(text, x.top * y.top, x.bottom * y.bottom)
    if sign == "/":
        return Computed(text, x.top * y.bottom, x.bottom * y.top)
    second = y.top * x.bottom
    return Computed(
        text, x.top * y.bottom + (second if sign == "+" else -second), x.bottom * y.bottom
    )


def refusals(repeats: int) -> dict[str, float]:
    """Milliseconds by hostile text: the median, at the place in an answer where it takes longest.

    AssertionError if one is taken for an answer that is right.
    """
    reference = {"numbers": [1, 2, 3], "target": 6}
    times: dict[str, float] = {}
    for name, text in HOSTILE.items():
        for style, place in PLACES.items():
            whole, taken = place.format(text), []
            for _ in range(repeats):
                start = time.perf_counter()
                verdict = judge(whole, reference, style, "smooth")
                taken.append(1e3 * (time.perf_counter() - start))
                assert not verdict.correct and not verdict.formatted, name
            times[name] = max(times.get(name, 0.0), statistics.median(taken))
    return times


def main() -> None:
    measure.report(run())


if __name__ == "__main__":
    main()
