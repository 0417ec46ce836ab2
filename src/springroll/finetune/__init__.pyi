from .config import FinetuneConfig as FinetuneConfig
