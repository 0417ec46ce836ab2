"""What a machine can train, how, and how fast: bytes and seconds of a step before it is made."""

from springroll.planner.plan import plan

__all__ = [
    "plan",
]
