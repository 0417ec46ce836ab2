"""Models bigger than the device: weights live in host memory and pass through it by layers."""

from springroll.stream.streamed import Streamed

__all__ = [
    "Streamed",
]
