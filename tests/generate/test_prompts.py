"""Every row goes on from its own prompt; equal prompts of equal weights are read once."""

import numpy as np
import pytest

from springroll.generate.prompts import Prompts, largest_call, readings, rounded
from springroll.generate.queue import ANY, Jobs

RNG = np.random.default_rng(0)


def asked(count, copies=1, low=30, high=200):
    found = [RNG.integers(1, 99, RNG.integers(low, high)).tolist() for _ in range(count)]
    return [each for each in found for _ in range(copies)]


def read(prompts, jobs, shared, most=1 << 16):
    rows = RNG.permutation(jobs.member.size).astype(np.int32)
    return rows, readings(prompts, jobs, rows, np.arange(jobs.member.size), shared, most)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("pairs, unperturbed, copies", [(8, 0, 1), (4, 3, 4), (0, 6, 1)])
def test_rows_go_on_from_their_own_prompt_and_weights(shared, pairs, unperturbed, copies):
    prompts = Prompts.of(asked(7, copies))
    jobs = Jobs.of(pairs, (1, -1), unperturbed, len(prompts.tokens))
    rows, found = read(prompts, jobs, shared, most=3000)
    begun, seen = {}, []
    for each in found:
        seen += [tuple(map(int, np.r_[p, s])) for p, s in _cells(each)]
        tokens = prompts.padded(each.prompt)
        for row, source in zip(each.row, each.source, strict=True):
            if row < 0:
                continue
            assert row not in begun
            line, place = divmod(int(source), each.prompt.shape[1])
            begun[row] = (int(each.pair[line]), float(each.sign[line, place]))
            job = int(np.flatnonzero(rows == row)[0])
            own = prompts.tokens[jobs.prompt[job]]
            np.testing.assert_array_equal(tokens[line, place, tokens.shape[2] - len(own) :], own)
            assert begun[row][1] == jobs.sign[job]
            assert jobs.pair[job] in (ANY, begun[row][0])
    assert len(begun) == jobs.member.size
    signs = 2 * pairs + (unperturbed > 0)  # different weights
    assert len(seen) == 7 * signs


def _cells(reading):
    for line, place in np.argwhere(reading.prompt >= 0):
        weights = (reading.sign[line, place], reading.sign[line, place] and reading.pair[line])
        yield (reading.prompt[line, place],), weights


def test_prompts_are_read_at_about_their_length():
    prompts = Prompts.of(asked(32))
    jobs = Jobs.of(16, (1, -1), 0, 32)
    _, found = read(prompts, jobs, shared=True)
    padded = sum(prompts.padded(each.prompt).size for each in found)
    assert padded <= 1.25 * 32 * prompts.lengths.sum()


def test_a_call_reads_no_more_tokens_than_asked():
    prompts = Prompts.of(asked(16, copies=4))
    for pairs, unperturbed in ((8, 2), (0, 16)):
        jobs = Jobs.of(pairs, (1, -1), unperturbed, 64)
        for shared in (True, False):
            for each in read(prompts, jobs, shared, most=8000)[1]:
                width = prompts.padded(each.prompt).shape[2]
                lines, height = each.prompt.shape
                assert lines == 1 or lines * height * width <= 10000


def test_programs_are_few_whatever_the_prompts():
    shapes = set()
    for _ in range(200):
        prompts = Prompts.of(asked(32, low=20, high=int(RNG.integers(30, 256))))
        jobs = Jobs.of(16, (1, -1), 0, 32)
        for each in read(prompts, jobs, shared=True)[1]:
            shapes.add((prompts.padded(each.prompt).shape, each.row.shape))
    assert len(shapes) <= 24


def test_sizes_are_four_per_power_of_two():
    sizes = {rounded(n) for n in range(1, 4097)}
    assert all(n <= rounded(n) <= max(8, 1.25 * n) for n in range(33, 4097))
    assert len(sizes) <= 36


@pytest.mark.parametrize("length", [8, 24, 128])
def test_no_call_is_larger_than_the_plan_counts_on(length):
    for count in (1, 3, 8, 32):
        prompts = Prompts.of([[i + 1] * length for i in range(count)])
        for pairs in (1, 8, 31):
            jobs = Jobs.of(pairs, (1, -1), 0, count)
            every = jobs.pair.size
            for most in (length, 303, 1000, 65536):
                plan = largest_call(rounded(length), count, every, most)
                for shared, new in ((True, every), (True, every // 2 + 1), (False, every)):
                    at = np.arange(new, dtype=np.int32)
                    found = readings(prompts, jobs, at, at, shared, most)
                    assert max(each.prompt.size for each in found) * rounded(length) <= plan
