"""Low-rank gradients: training in a subspace of each weight's gradient."""

from springroll.subspace.apollo import apollo, apollo_mini
from springroll.subspace.basis import rotate_moment
from springroll.subspace.fira import fira
from springroll.subspace.galore import galore
from springroll.subspace.hf_adam import adam_direction, hf_adamw
from springroll.subspace.layerwise import Layerwise, LayerwiseState, layerwise
from springroll.subspace.lowgrad import lowgrad
from springroll.subspace.optimizers import OPTIMIZERS, OptimizerEntry, OptimizerSettings
from springroll.subspace.projection import ProjectionOptions
from springroll.subspace.trainer import LowGradState, Trainer

__all__ = [
    "OPTIMIZERS",
    "Layerwise",
    "LayerwiseState",
    "LowGradState",
    "OptimizerEntry",
    "OptimizerSettings",
    "ProjectionOptions",
    "Trainer",
    "adam_direction",
    "apollo",
    "apollo_mini",
    "fira",
    "galore",
    "hf_adamw",
    "layerwise",
    "lowgrad",
    "rotate_moment",
]
