"""The job `train`: a decoder learns text by full or low-rank gradients."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
