"""A run of any job: the loop, its folder, journal, checkpoints, metrics and clocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
