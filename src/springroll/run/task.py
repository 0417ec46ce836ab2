"""What the loop needs of a task: a few pure functions. Text, RL and fine-tuning all look like it.

One generation is three calls, each usually a `jax.jit`:

    members = ask(state)                     # factors or counters, never weights
    fitness, carry, metrics = evaluate(state, members, carry, batch)
    state, metrics = tell(state, members, fitness)

They are separate, and `tell` is given the fitness as it came to the host and went to the journal,
so that replaying the journal runs the very programs that training ran: equal to the last bit,
floats included.

Training by gradients is the case of one member that keeps what it learns: the weights and their
optimizer's state are its carry, `evaluate` makes the step, and there is nothing to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from springroll.atomic import JsonObject
from springroll.cluster.spans import Span

if TYPE_CHECKING:
    import jax
    import numpy as np

    from springroll.trees import PyTree

State: TypeAlias = "PyTree"
"""Arrays: weights, optimizer state, key, generation counter."""
Carry: TypeAlias = "PyTree"
"""Arrays that the members keep between generations; None when they keep nothing."""
Members: TypeAlias = "PyTree"
"""What `ask` hands to `evaluate` and `tell`."""
Batch: TypeAlias = "PyTree"
"""Arrays on the host."""
Scalar: TypeAlias = "jax.Array | np.ndarray | np.generic | float | int"
Metrics: TypeAlias = Mapping[str, "Scalar"]
"""Scalars by their names, left on the device until a log is due."""
Fitness: TypeAlias = "jax.Array | np.ndarray"
"""(pop_size,) float32 or int32, or a matrix (pop_size, prompts)."""


class Training(NamedTuple):
    """What a checkpoint holds; the state first, so that a mismatch is named by a weight."""

    state: State
    carry: Carry


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """How members are evaluated part by part, which several processes can share."""

    pairs: int
    """Of the population; members divide evenly over them."""
    score: Callable[[State, Members, Carry, Batch, Span], tuple[Fitness, Carry, PyTree]]
    """Of the members of some pairs: their fitness, what they keep, and a note, a few numbers for
    `join`. The carry is theirs, if members keep their own, else that of the run."""
    join: Callable[[Carry, Fitness, Sequence[PyTree]], tuple[Carry, Metrics]]
    """From the fitness of all and the notes of all parts, in the order of the pairs: the carry, and
    figures. Every process calls it with the same."""
    keeps: bool = False
    """Whether each member keeps something of its own: the carry has a leading axis of members."""
    exact: bool = False
    """Whether fitness does not depend on how many pairs are scored together, as with integers."""
    block: int | None = None
    """Pairs that are scored together; None: as many as there are."""
    unit: int = 1
    """What the number of pairs is best a multiple of, such as the devices of a process."""

    def evaluate(
        self, state: State, members: Members, carry: Carry, batch: Batch
    ) -> tuple[Fitness, Carry, Metrics]:
        """All members in one call, as `Task.evaluate`."""
        fitness, kept, note = self.score(state, members, carry, batch, Span(0, self.pairs))
        carry, figures = self.join(carry if not self.keeps else kept, fitness, [note])
        return fitness, carry, figures


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Which figures make the learning curve, and what to beat."""

    train: str = "train_bits_per_byte"
    valid: str = "valid_bits_per_byte"
    label: str = "bits per byte"
    short: str = "bits/byte"  # the name on the progress line
    lines: Mapping[str, float] = field(default_factory=dict)  # horizontal, by name
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to train, as pure functions of their arguments. Higher fitness is better.

    `ask`, `evaluate` and `tell` must not depend on anything but their arguments; a resumed run
    relies on it. `tell` may donate `state` and `evaluate` may donate `carry`: the loop never uses
    them again.
    """

    init: Callable[[], tuple[State, Carry]]
    """State and carry before the first generation, the same at every call. A carry without leaves
    says that members keep nothing; then a resumed run can take fitness from the journal."""
    template: Callable[[], tuple[State, Carry]] | None = None
    """Shapes of what `init` returns (`jax.ShapeDtypeStruct`, with shardings where its arrays are
    committed to devices), so that a checkpoint is read without making arrays first; None: `init` is
    called for them."""
    batch: Callable[[int], Batch]
    """The data of a generation (counted from 0), on the host; called while the device is busy."""
    ask: Callable[[State], Members]
    evaluate: Callable[[State, Members, Carry, Batch], tuple[Fitness, Carry, Metrics]]
    """Fitness, (pop_size,) float32 or int32; the carry; figures like `train_bits_per_byte`."""
    tell: Callable[[State, Members, PyTree], tuple[State, Metrics]]
    """The step. The fitness is a NumPy array; members whose fitness is not finite take no part."""
    validate: Callable[[State, Carry], Metrics] | None = None
    """Figures of the weights themselves, such as `valid_bits_per_byte`."""
    pop_size: int
    tokens: int
    """Tokens (or other units) that all members together take in one generation; where that is not
    known beforehand, at most, and `evaluate` counts them in a figure of the unit's name."""
    unit: str = "tokens"
    """What is counted, as metrics and summary name it: `tokens`, `tokens_per_second`."""
    iteration: str = "generation"
    """What one turn of the loop is called in lines for people: generation, step."""
    seed: int = 0
    """Goes to the journal."""
    lost_limit: int = 1
    """Stop after so many generations in a row without one finite fitness."""
    unscored: Callable[[], str] = lambda: ""
    """What could not be scored so far and why, in a line; empty where the task does not know."""
    answers: Callable[[], Sequence[JsonObject]] = tuple
    """Some of what the model wrote at the last validation, from the best to the worst: rows of
    `answers.answer_row`, which answers.jsonl keeps."""
    warnings: Callable[[], Mapping[str, str]] = dict
    """What the user should know and can change, a line each by a name; every one is said once, and
    kept in metrics and summary as `warning_NAME`."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What else must be the same when a run goes on: for text, the hash of the corpus."""
    summary: Mapping[str, float | int | str] = field(default_factory=dict)
    """Further figures for summary.json."""
    curve: Curve = field(default_factory=Curve)
    keep_best: bool = False
    """Keep, beside the newest checkpoints, the weights with the highest `curve.valid`."""
    weights: str = ""
    """The path in a checkpoint of the weights, such as `state/params`: all that is kept of the best
    ones. Empty: everything is."""
    validation_tokens: int = 0
    """What a validation takes in the same unit as `tokens`; where it is much, generations that may
    become the best one are further apart."""
    blocks: Blocks | str = "only those of springroll pretrain are, so far"
    """How the members of a generation are shared by several processes, or why they are not."""
    guarded: str | None = None
    """Pattern of the paths in a checkpoint (`state/...`, `carry/...`) of weights and moments: what
    holds NaN or infinity there is never saved, and the run stops. None: all of the state, or of the
    carry where there is no state."""
