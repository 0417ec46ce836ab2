"""Plain inference code: models know nothing of training."""

from springroll.models.hf import load_hf, save_hf
from springroll.models.protocols import Generative, LanguageModel, Stages

__all__ = ["Generative", "LanguageModel", "Stages", "load_hf", "save_hf"]
