"""Plain inference code: models know nothing of training."""

from springroll.models.hf import load_hf, save_hf

__all__ = ["load_hf", "save_hf"]
