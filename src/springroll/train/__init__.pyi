from .config import TrainConfig as TrainConfig
