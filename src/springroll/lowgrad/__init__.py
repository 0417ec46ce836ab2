"""Low-rank gradients: training in a subspace of each weight's gradient."""

from springroll._room import callable_room

callable_room(__name__, "springroll.lowgrad.lowgrad")
