"""What a process does of a run, with a task of a few numbers."""

import dataclasses

import numpy as np
import pytest

from springroll.cluster.crew import ClusterError
from springroll.errors import InputError
from springroll.run.share import CARRY, GO, STOP, Share
from springroll.run.task import Blocks, Task
from tests.cluster.test_crew import _impatient, together  # noqa: F401  a fixture

PAIRS = 6


def score(state, members, carry, batch, span):
    """A member's fitness is what it remembers, and it remembers one more each time."""
    rows = np.arange(PAIRS * 2)[span.members(2)]
    assert len(carry) == len(rows)
    return (carry + rows).astype(np.float32), carry + 1, np.int32(len(rows))


def joined(carry, fitness, notes):
    return carry, {"members": sum(map(int, notes)), "mean": float(np.mean(fitness))}


def toy(**options) -> Task:
    blocks = Blocks(pairs=PAIRS, score=score, join=joined, keeps=True, **options)
    return Task(
        init=lambda: ({"w": np.zeros(3, np.float32)}, np.arange(PAIRS * 2) * 10),
        batch=lambda generation: generation,
        ask=lambda state: None,
        evaluate=blocks.evaluate,
        tell=lambda state, members, fitness: ({"w": state["w"] + fitness.sum()}, {}),
        pop_size=PAIRS * 2,
        tokens=1,
        blocks=blocks,
    )


def run(crew, task, generations=3):
    """A loop without files; the state, what the members keep, and the figures, of the leader."""
    share = Share(task, crew)
    state, carry = task.init()
    share.meet()
    carry, figures = share.begin(0, carry), []
    if crew is None or crew.leads:
        for generation in range(generations):
            share.go_on()
            fitness, carry, figure = share.evaluate(state, None, carry, generation)
            share.settled(np.asarray(fitness))
            state, _ = task.tell(state, None, fitness)
            figures.append(figure)
        share.compare(state)
        carry = share.whole(carry)
        share.end()
        return state["w"].tolist(), carry.tolist(), figures
    while (word := share.told()) != STOP:
        if word == GO:
            fitness, carry = share.follow(state, None, carry, 0, None)
            state, _ = task.tell(state, None, fitness)
        elif word == CARRY:
            share.hand_over(carry)
        else:
            share.answer(state, word)
    return state["w"].tolist(), None, None


@pytest.mark.parametrize(
    ("size", "options"),
    [(2, {"exact": True}), (4, {"exact": True}), (2, {"block": 1}), (3, {"block": 2})],
)
def test_processes_together_come_to_what_one_comes_to(size, options):
    one = run(None, toy(**options))
    (leader, *others), _ = together(size, lambda crew: run(crew, toy(**options)))
    assert leader == one
    assert [w for w, _, _ in others] == [one[0]] * (size - 1)


def test_numbers_that_follow_from_who_is_scored_together_need_a_block():
    for found in together(2, lambda crew: run(crew, toy()))[0]:
        assert isinstance(found, InputError)
        assert "--block" in str(found)


def test_what_cannot_be_shared_says_why():
    task = dataclasses.replace(toy(), blocks="it has one member")
    for found in together(2, lambda crew: run(crew, task))[0]:
        assert isinstance(found, InputError)
        assert "it has one member" in str(found)


def test_a_process_with_other_weights_is_named_with_the_parameter():
    def work(crew):
        share = Share(toy(exact=True), crew)
        state = {"v": np.ones(2), "w": np.full(3, 1 if crew.rank == 2 else 0)}
        if crew.leads:
            try:
                share.compare(state)
            finally:
                share.end()
        while not crew.leads and (word := share.told()) != STOP:
            share.answer(state, word)

    leader, *others = together(3, work)[0]
    assert isinstance(leader, ClusterError)
    assert "process 2 holds another w than process 0" in str(leader)
    assert others == [None, None]


def test_another_seed_is_refused():
    task = lambda rank: dataclasses.replace(toy(exact=True), seed=rank)
    for found in together(2, lambda crew: run(crew, task(crew.rank)))[0]:
        assert isinstance(found, InputError)
        assert "process 1 has seed 1, process 0 has 0" in str(found)
