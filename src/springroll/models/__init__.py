"""Plain inference code: models know nothing of training."""

from springroll.models.decoder import Decoder, decoder, stages
from springroll.models.decoder_config import CONFIGS, DecoderConfig, named
from springroll.models.egg import Egg, EggConfig, egg
from springroll.models.expert_stages import ExpertStages, expert_stages
from springroll.models.hf import load_hf, save_hf
from springroll.models.policy import Policy, PolicyNetwork, linear
from springroll.models.protocols import Generative, LanguageModel, Stages
from springroll.models.rwkv7 import RWKV7, RWKV7_CONFIGS, RWKV7Config

__all__ = [
    "CONFIGS",
    "RWKV7",
    "RWKV7_CONFIGS",
    "Decoder",
    "DecoderConfig",
    "Egg",
    "EggConfig",
    "ExpertStages",
    "Generative",
    "LanguageModel",
    "Policy",
    "PolicyNetwork",
    "RWKV7Config",
    "Stages",
    "decoder",
    "egg",
    "expert_stages",
    "linear",
    "load_hf",
    "named",
    "save_hf",
    "stages",
]
