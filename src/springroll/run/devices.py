"""Which devices of the process a run uses."""

from typing import Any

import jax

from springroll.errors import InputError


def devices_for(asked: int | None) -> list[Any]:
    """As many as asked for; by default all accelerators, or one CPU.

    Raises:
        InputError: this process has fewer.
    """
    found = jax.local_devices()
    wanted = asked or (1 if found[0].platform == "cpu" else len(found))
    if wanted > len(found):
        raise InputError(
            f"devices is {wanted}; this process has {len(found)}: give --devices {len(found)}"
            f"{' or fewer' if len(found) > 1 else ''}"
        )
    return found[:wanted]
