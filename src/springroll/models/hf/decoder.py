"""Decoders in Hugging Face folders: their `config.json` and the names of their tensors."""

from springroll.models.decoder import decoder
from springroll.models.decoder_config import DecoderConfig, shapes
from springroll.models.hf.decoder_names import JOINED, SEPARATE, checkpoint_names
from springroll.models.hf.decoder_read import FAMILIES, hf_config
from springroll.models.hf.decoder_write import config_json
from springroll.models.hf.family import Family

__all__ = ["DECODER", "FAMILIES", "checkpoint_names", "config_json", "hf_config"]

DECODER = Family(
    config=DecoderConfig,
    model=decoder,
    shapes=shapes,
    naming=SEPARATE,
    joined=JOINED,
    read=hf_config,
    write=config_json,
)
