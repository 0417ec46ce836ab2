from .config import RLConfig as RLConfig
