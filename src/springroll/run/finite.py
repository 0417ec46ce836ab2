"""Whether numbers are finite, read from their bits: quick also for bfloat16."""

import numpy as np

from springroll.errors import InputError

# The bits of the exponent, all of which are set in NaN and infinity, in words of that many bytes.
_EXPONENTS = {
    "float64": 0x7FF0_0000_0000_0000,
    "float32": 0x7F80_0000,
    "bfloat16": 0x7F80,
    "float16": 0x7C00,
}
_BLOCK = 1 << 18  # numbers looked at together: they stay in the cache


class NotFinite(InputError):
    """A leaf of a state holds NaN or infinity."""

    def __init__(self, leaf: str, value: str):
        super().__init__(f"{leaf} is {value}")
        self.leaf, self.value = leaf, value


def refuse_not_finite(leaf: str, array: np.ndarray) -> None:
    """Raise NotFinite for an array with NaN or infinity; integers and rare floats always pass.

    Args:
        leaf: the path of the array, for the message.
        array: on the host; one pass over it, in blocks.
    """
    exponent = _EXPONENTS.get(array.dtype.name)
    if exponent is None:
        return
    word = np.dtype(f"u{array.dtype.itemsize}")
    mask, flat = word.type(exponent), np.ascontiguousarray(array).reshape(-1).view(word)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        found = (block & mask) == mask
        if found.any():
            value = np.float64(array.reshape(-1)[start + int(found.argmax())])
            raise NotFinite(leaf, "NaN" if np.isnan(value) else "infinite")
