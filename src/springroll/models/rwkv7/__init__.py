"""RWKV-7, a recurrent language model."""

from springroll.models.rwkv7.config import RWKV7_CONFIGS, RWKV7Config
from springroll.models.rwkv7.model import RWKV7

__all__ = ["RWKV7", "RWKV7_CONFIGS", "RWKV7Config"]
