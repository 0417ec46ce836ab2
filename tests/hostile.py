"""Files as nobody should write them: a reader ends in a result or in one InputError.

`fuzz` runs such a test within a limit of memory; `damaged` and `other_json` make the inputs.
"""

import contextlib
import copy
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from springroll.errors import InputError

EXAMPLES = [40, pytest.param(10_000, marks=pytest.mark.slow)]
MEMORY = 1 << 30  # bytes that a reader may take at once, none of which these small files need


def fuzz(examples, inputs, read):
    """`read` all inputs; a failure is any exception that is no InputError of one line."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(inputs)
    def test(content):
        ends_well(lambda: read(content))

    with limited_memory():
        test()


def ends_well(read):
    """Whether there was a result."""
    try:
        read()
    except InputError as error:
        assert str(error) and str(error).isprintable()
        return False
    return True


@contextlib.contextmanager
def limited_memory():
    """Whoever allocates more than `MEMORY` meanwhile gets a MemoryError, on Linux."""
    sizes = Path("/proc/self/statm")
    if not sizes.exists():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(sizes.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def damaged(content):
    """The bytes with up to six places changed, left out or added to, or cut off."""
    edits = st.lists(
        st.tuples(st.integers(0, len(content)), st.integers(0, 12), st.binary(max_size=12)),
        max_size=6,
    )

    def apply(edits, end):
        found = content[:end]
        for place, removed, added in edits:
            found = found[:place] + added + found[place + removed :]
        return found

    ends = st.one_of(st.just(len(content)), st.integers(0, len(content)))
    return st.builds(apply, edits, ends)


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2, 2**31, 2**63, 10**40]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["abc", "12", "../x", "/etc/passwd", "\x1b[2J", "\ud800", "a\0b", "x" * 5000]),
)
anything = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def other_json(draw, value):
    """The JSON value with up to three of its parts replaced by anything, left out or nested."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return value
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["replace", "replace", "replace", "drop", "nest", "double"]))
        if change == "replace":
            holder[key] = draw(anything)
        elif change == "drop":
            del holder[key]
        elif change == "nest":
            for _ in range(draw(st.sampled_from([1, 40, 80]))):
                holder[key] = [holder[key]]
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=8))] = holder[key]
        else:
            holder.append(holder[key])
    return value


def _places(value):
    """Every (holder, key) in a JSON value."""
    waiting = [value]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            yield node, key
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
