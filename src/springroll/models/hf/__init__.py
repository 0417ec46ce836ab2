"""Hugging Face folders: configurations and weights, read and written."""

from springroll.models.hf.decoder import hf_config
from springroll.models.hf.files import Checkpoint, is_hf_folder, open_hf, read_config
from springroll.models.hf.load import load_hf, read_bundles, read_params
from springroll.models.hf.save import save_hf

__all__ = [
    "Checkpoint",
    "hf_config",
    "is_hf_folder",
    "load_hf",
    "open_hf",
    "read_bundles",
    "read_config",
    "read_params",
    "save_hf",
]
