"""The progress bars of long work on cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar while the block runs; the yielded function marks one more item as done."""
    with Progress(*_columns()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@dataclass(frozen=True)
class CaseBars:
    """A bar for cases, and one for the tiles of the case at hand."""

    progress: Progress
    cases: TaskID
    tiles: TaskID

    def begin(self, tiles: int) -> None:
        """A case of so many tiles begins."""
        self.progress.reset(self.tiles, total=tiles)

    def after_tile(self) -> None:
        """One more tile is done."""
        self.progress.advance(self.tiles)

    def advance(self) -> None:
        """One more case is done."""
        self.progress.advance(self.cases)


@contextmanager
def case_bars(total: int, finished: int) -> Iterator[CaseBars]:
    """Show the bars of segmentation while the block runs; ``finished`` of ``total`` cases were done before."""
    with Progress(*_columns()) as progress:
        cases = progress.add_task("segmenting", total=total, completed=finished)
        yield CaseBars(progress, cases, progress.add_task("  tiles", total=None))


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
