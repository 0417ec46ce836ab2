"""Models bigger than the device: weights live in host memory and pass through it by layers."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
