from .config import PretrainConfig as PretrainConfig
