"""What is scored: a task turns a model and some data into a fitness, higher is better."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
