"""Shards of the cases of a command: several jobs, on one machine or many, share one output folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Every ``count``-th case, beginning with the case of number ``number``, counted from 1.

    Attributes:
        number: Which of the shards, from 1 to ``count``.
        count: The number of shards.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """The shard ``K/N``; None stands for all cases.

        Raises:
            ValueError: The text is not of this form.
        """
        if text is None:
            return cls()
        number, count = map(int, str(text).split("/"))
        if not 1 <= number <= count:
            raise ValueError(text)
        return cls(number, count)

    @property
    def is_all(self) -> bool:
        """Whether it has all cases."""
        return self.count == 1

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Those of the items that belong to this shard; each item belongs to one shard."""
        return list(items[self.number - 1 :: self.count])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


#: The shard that has all cases.
ALL = Shard()


def is_shard(text: object) -> bool:
    """Whether a text is a shard, ``K/N``."""
    try:
        Shard.parse(str(text))
    except ValueError:
        return False
    return True
