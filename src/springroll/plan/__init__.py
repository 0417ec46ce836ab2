"""What a machine can train, how, and how fast: bytes and seconds of a step before it is made."""

from springroll._room import callable_room

callable_room(__name__, "springroll.plan.plan")
