"""The job `pretrain`: a byte-level language model learns text by evolution."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
