"""Which pairs each process evaluates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springroll.cluster.detect import first_host, launch_of
from springroll.cluster.spans import Span, spans_of, usual_block
from springroll.errors import InputError


@given(st.integers(1, 200), st.integers(1, 12), st.sampled_from([None, 1, 2, 4]), st.integers(1, 4))
def test_spans_cover_every_pair_once_and_differ_by_one_block_at_most(pairs, size, block, unit):
    if block is not None and pairs % block:
        with pytest.raises(InputError, match="do not divide"):
            spans_of(pairs, size, block)
        return
    step = block or (unit if pairs % unit == 0 else 1)
    if pairs // step < size:
        with pytest.raises(InputError, match="processes cannot share"):
            spans_of(pairs, size, block, unit)
        return
    found = spans_of(pairs, size, block, unit)
    covered = [pair for spans in found for x in spans for pair in range(x.first, x.first + x.pairs)]
    assert covered == list(range(pairs))
    shares = [sum(x.pairs for x in spans) for spans in found]
    assert max(shares) - min(shares) <= step
    assert block is None or {x.pairs for spans in found for x in spans} == {block}


@given(st.integers(1, 4096), st.integers(1, 16))
def test_a_block_that_nobody_named_divides_the_pairs(pairs, size):
    block = usual_block(pairs, size)
    assert pairs % block == 0
    assert pairs < size or pairs // block >= size


def test_members_of_a_span():
    assert Span(3, 2).members(2) == slice(6, 10)


SLURM = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "gpu[07-09],big1",
}


def test_slurm_is_detected():
    found = launch_of(None, None, None, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"})
    assert found is not None
    assert (found.coordinator, found.size, found.rank) == (f"gpu07:{61440 + 70001 % 4096}", 4, 2)
    assert found.devices == (1,)
    alone = launch_of(None, None, None, SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"})
    assert alone is not None
    assert alone.devices is None  # all of the node's


def test_a_lone_process_is_no_launch():
    assert launch_of(None, None, None, {}) is None
    assert launch_of(None, None, None, {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None


def test_open_mpi_is_detected():
    found = launch_of(
        None,
        None,
        None,
        {
            "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": "1",
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        },
    )
    assert found is not None
    assert (found.coordinator, found.rank) == (f"10.96.0.1:{61440 + 34911 % 4096}", 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("here:1", 2, None), "--process is missing"),
        ((None, 2, 0), "--coordinator is missing"),
        (("here:1", 2, 2), "process is 2; 2 processes are numbered from 0 to 1"),
        (("here", 2, 0), "expected HOST:PORT"),
    ],
)
def test_what_is_missing_is_named(given, message):
    with pytest.raises(InputError, match=message):
        launch_of(*given, environment={})


def test_hosts_of_slurm():
    assert first_host("n[1,3]") == "n1"
