"""Jobs find slots: every one once, only where its pair's factors are, few slots idle."""

import numpy as np
import pytest

from springroll.generate.queue import ANY, SMALLEST, Jobs, Slots, Waiting


def test_jobs_come_pair_by_pair_and_prompt_by_prompt():
    jobs = Jobs.of(2, (1, -1), 1, 2)
    np.testing.assert_array_equal(jobs.member, [0, 1, 0, 1, 2, 3, 2, 3, 4, 4])
    np.testing.assert_array_equal(jobs.prompt, [0, 0, 1, 1, 0, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(jobs.pair, [0, 0, 0, 0, 1, 1, 1, 1, ANY, ANY])
    np.testing.assert_array_equal(jobs.sign, [1, -1, 1, -1, 1, -1, 1, -1, 0, 0])


def test_a_group_keeps_its_pair_while_a_row_of_it_lives():
    jobs = Jobs.of(3, (1, -1), 0, 1)
    waiting, slots = Waiting(jobs), Slots.empty(1, 2)
    assert slots.fill(waiting) == [0, 1]
    slots.job[0, 0] = -1
    assert slots.fill(waiting) == []  # the other row still needs the factors
    slots.job[0, 1] = -1
    assert slots.fill(waiting) == [0, 1]
    assert slots.pair[0] == 1


def test_rows_of_nobody_fill_any_slot():
    waiting, slots = Waiting(Jobs.of(1, (1, -1), 2, 1)), Slots.empty(1, 3)
    assert slots.fill(waiting) == [0, 1, 2]
    assert slots.pair[0] == 0
    slots.job[:] = -1
    assert slots.fill(waiting) == [0]
    assert slots.pair[0] == ANY
    assert not waiting


@pytest.mark.parametrize("groups, each", [(8, 2), (16, 1), (4, 4)])
def test_every_job_runs_once_beside_its_factors(groups, each):
    jobs = Jobs.of(12, (1, -1), 3, 5)
    waiting, slots = Waiting(jobs), Slots.empty(groups, each)
    rng, done = np.random.default_rng(0), []
    while True:
        slots.fill(waiting)
        group, place = np.nonzero(slots.job >= 0)
        if not group.size:
            break
        running = slots.job[group, place]
        own = jobs.pair[running]
        assert ((own == ANY) | (own == slots.pair[group])).all()
        end = rng.integers(group.size)
        done.append(int(running[end]))
        slots.job[group[end], place[end]] = -1
    assert sorted(done) == list(range(jobs.member.size))


@pytest.mark.parametrize("each", [1, 2])
def test_packed_rows_keep_their_jobs_and_factors(each):
    jobs = Jobs.of(4, (1, -1), 2, 2)
    waiting, slots = Waiting(jobs), Slots.empty(6, 4)
    slots.fill(waiting)
    before = slots.job.reshape(-1).copy()
    gone = np.isin(before, [0, 1, 2, 6, 7, 8, 9, 10, 12, 13, 15])
    slots.job.reshape(-1)[gone] = -1
    packed, source = slots.packed(each, jobs.pair)
    live = before[(before >= 0) & ~gone]
    there = packed.job >= 0
    assert sorted(packed.job[there].tolist()) == sorted(live.tolist())
    np.testing.assert_array_equal(before[source[source >= 0]], packed.job.reshape(-1)[source >= 0])
    group = np.nonzero(there)[0]
    own = jobs.pair[packed.job[there]]
    assert ((own == ANY) | (own == packed.pair[group])).all()
    assert len(packed.pair) & (len(packed.pair) - 1) == 0
    assert SMALLEST <= packed.job.size <= 2 * each * len(live)
