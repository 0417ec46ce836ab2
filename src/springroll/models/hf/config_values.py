"""The values of a `config.json`, each of the type and within the range that a model can have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from springroll.errors import InputError, brief
from springroll.models.config_checks import MOST


@dataclass(frozen=True)
class Values:
    """A JSON object, and where it stands, for messages. Null is as good as a key left out.

    Methods take a key and what it means if it is left out; without that, it must be there. They
    raise an InputError that names file and key: it is missing, of another type, or out of range.
    """

    values: Mapping[str, Any]
    where: str

    def get(self, key: str) -> Any:
        """Whatever stands there, of any type; None if nothing does."""
        return self.values.get(key)

    def whole(self, key: str, default: int | None = None, *, most: int = MOST) -> int:
        """A whole number from 1."""
        value = self._given(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise self._unlike(key, f"a whole number from 1 to {most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self._given(key, default)
        if type(value) not in (int, float) or not 0 < value < math.inf or value > 1e300:
            raise self._unlike(key, "a number above 0")
        return value

    def number_or_zero(self, key: str) -> float:
        """A finite number above 0; 0 if it is left out."""
        return 0.0 if self.values.get(key) is None else float(self.number(key))

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._given(key, default)
        if type(value) is not bool:
            raise self._unlike(key, "true or false")
        return value

    def items(self, key: str) -> list[Any]:
        """A list; empty if it is left out."""
        value = self._given(key, [])
        if not isinstance(value, list):
            raise self._unlike(key, "a list")
        return value

    def section(self, key: str) -> "Values":
        """An object within this one; empty if it is left out."""
        value = self._given(key, {})
        if not isinstance(value, dict):
            raise self._unlike(key, "an object")
        return Values(value, f"{self.where}, {key}")

    def _given(self, key: str, default: object) -> Any:
        value = self.values.get(key)
        value = default if value is None else value
        if value is None:
            raise InputError(f"{self.where}: the key {key!r} is missing")
        return value

    def _unlike(self, key: str, expected: str) -> InputError:
        given = brief(self.values.get(key))
        return InputError(f"{self.where}: {key} is {given}; expected {expected}")
