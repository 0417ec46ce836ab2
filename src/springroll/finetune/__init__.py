"""The job `finetune`: a language model learns from a reward, by evolution or GRPO."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
