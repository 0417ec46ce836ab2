"""OpenES (arXiv 1703.03864): the full-rank baseline, under the same protocol as EGGROLL."""

from collections.abc import Mapping
from typing import Any

from springroll.evolve.eggroll import eggroll
from springroll.evolve.population import Schedule
from springroll.evolve.strategy import Strategy


def open_es(
    *, pop_size: int, sigma: Schedule, roles: Mapping[str, str] | None = None, **options: Any
) -> Strategy:
    """Evolution strategies with a full Gaussian matrix per pair and weight.

    The same machinery with every parameter marked dense: noise of the size of the model per pair,
    one copy of the weights per member. It takes the options of `sr.eggroll` except `rank` and
    `plan`; patterns in `roles` can still freeze parameters.
    """
    return eggroll(pop_size=pop_size, sigma=sigma, roles={"*": "dense", **(roles or {})}, **options)
