"""Progress bars for long-running work on cases."""

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
    """Show a progress bar while the block runs; the yielded function marks one more item as done."""
    with Progress(*_columns()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda: progress.advance(task)


@dataclass(frozen=True)
class CaseBars:
    """One bar for the cases and one for the tiles of the current case."""

    progress: Progress
    cases: TaskID
    tiles: TaskID

    def begin(self, tiles: int) -> None:
        """Start a case with this number of tiles."""
        self.progress.reset(self.tiles, total=tiles)

    def after_tile(self) -> None:
        """Mark one more tile as done."""
        self.progress.advance(self.tiles)

    def advance(self) -> None:
        """Mark one more case as done."""
        self.progress.advance(self.cases)


@contextmanager
def case_bars(total: int, finished: int) -> Iterator[CaseBars]:
    """Show the bars for segmentation while the block runs; ``finished`` of ``total`` cases are already done."""
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
