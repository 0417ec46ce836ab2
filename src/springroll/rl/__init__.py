"""The job `rl`: a policy learns from the return of its episodes, by evolution or PPO."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
