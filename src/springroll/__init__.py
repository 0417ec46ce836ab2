"""springroll trains models past the memory wall, in JAX, with or without gradients.

The public names are listed in `__init__.pyi`. Each is imported when it is first used, so that
importing the package starts no backend and costs nothing.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = [*_names, "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]
