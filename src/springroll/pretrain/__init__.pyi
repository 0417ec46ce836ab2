from .pretrain import PretrainConfig as PretrainConfig
