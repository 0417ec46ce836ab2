"""The order in which a training step visits the layers.

An order is a list of visits; the engine does what they say. `layer_major` runs all micro-batches
of a layer before the next layer, so weights cross the link twice per step however many there are,
and sums of gradients are those of one layer (the vertical order of GreedySnake, arXiv 2512.17570).
`checkpointed` is the published order of MegaTrain (arXiv 2604.05091), to compare with: it keeps the
input of every fourth layer, sends weights for the forward pass, for the replay of a block of layers
and for their gradients, and looks ahead in the forward pass only.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from springroll.errors import InputError

Phase = Literal["embed", "forward", "finish", "backward", "embed backward"]
VisitOrder = Literal["layer-major", "checkpointed"]


class Visit(NamedTuple):
    """One phase, for some micro-batches."""

    phase: Phase
    parts: tuple[int, ...]  # micro-batches
    layer: int = -1  # of the phases forward and backward
    keep: bool = True  # forward: the layer's input, for a later visit
    ahead: bool = True  # send the next bundle before this one is computed


def layer_major(layers: int, parts: int) -> list[Visit]:
    """Forward through all layers and back, every layer with all micro-batches."""
    every = tuple(range(parts))
    return [
        Visit("embed", every),
        *(Visit("forward", every, layer) for layer in range(layers)),
        Visit("finish", every),
        *(Visit("backward", every, layer) for layer in reversed(range(layers))),
        Visit("embed backward", every),
    ]


def forward_only(layers: int, parts: int) -> list[Visit]:
    """To the loss; nothing is kept for a gradient."""
    every = tuple(range(parts))
    return [
        Visit("embed", every),
        *(Visit("forward", every, layer, keep=False) for layer in range(layers)),
        Visit("finish", every),
    ]


def checkpointed(layers: int, parts: int, every: int = 4) -> list[Visit]:
    """Inputs of every `every`-th layer are kept, the others computed again block by block.

    Raises:
        InputError: more than one micro-batch, which this order would send all weights for anew.
    """
    if parts != 1:
        raise InputError(f"the checkpointed schedule takes one micro-batch; there are {parts}")
    one = (0,)
    visits = [Visit("embed", one)]
    visits += [Visit("forward", one, i, keep=i % every == 0) for i in range(layers)]
    visits.append(Visit("finish", one))
    for begin in reversed(range(0, layers, every)):
        block = range(begin, min(layers, begin + every))
        visits += [Visit("forward", one, i, ahead=False) for i in block]
        visits += [Visit("backward", one, i, ahead=False) for i in reversed(block)]
    return [*visits, Visit("embed backward", one)]


ORDERS: dict[VisitOrder, Callable[[int, int], list[Visit]]] = {
    "layer-major": layer_major,
    "checkpointed": checkpointed,
}
