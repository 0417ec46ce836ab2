"""The actions an environment takes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Discrete:
    """One of `count` actions, an int32 scalar."""

    count: int

    @property
    def outputs(self) -> int:
        """Numbers that a policy says about an action: logits."""
        return self.count

    def __str__(self) -> str:
        return f"discrete {self.count}"


@dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once, int32 (len(counts),): one of counts[i] each."""

    counts: tuple[int, ...]

    @property
    def outputs(self) -> int:
        return sum(self.counts)

    def __str__(self) -> str:
        return f"multi-discrete {', '.join(map(str, self.counts))}"


@dataclass(frozen=True)
class Box:
    """Real numbers, float32 (size,), each between its bounds."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.low)

    @property
    def outputs(self) -> int:
        """Means, and after them logarithms of standard deviations."""
        return 2 * self.size

    def __str__(self) -> str:
        spans = {f"{low:g} to {high:g}" for low, high in zip(self.low, self.high, strict=True)}
        return f"box {self.size} of {spans.pop() if len(spans) == 1 else 'several ranges'}"


Actions = Discrete | MultiDiscrete | Box
