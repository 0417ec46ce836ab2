"""Weights as base + thin term, and the transform that runs any JAX function on them."""

from springroll._room import callable_room

callable_room(__name__, "springroll.factored.interpret")
