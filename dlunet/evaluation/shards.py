"""Score a shard of a folder of label maps; the job that finds the scores of all shards writes the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dlunet import stamps
from dlunet.evaluation.folder import failure, make_folder, write_tables
from dlunet.evaluation.metrics import Metric
from dlunet.evaluation.pairs import Pair, Rows, match_pairs, message_console, score_pairs
from dlunet.files import write_text
from dlunet.labels import LabelSet
from dlunet.locks import alone
from dlunet.run_layout import ScoresLayout
from dlunet.shards import Shard

if TYPE_CHECKING:
    import pandas as pd


class _Part(NamedTuple):
    """The scores of a shard, and messages about the cases that could not be scored, both by case."""

    rows: dict[str, Rows]
    failures: dict[str, str]


def evaluate_shard(
    predictions: Path,
    references: Path,
    output: Path,
    labels: LabelSet,
    shard: Shard,
    metrics: Mapping[str, Metric],
    workers: int | None = None,
) -> pd.DataFrame | None:
    """Score the cases of a shard; the tables are those of :func:`dlunet.evaluation.evaluate_folder` for all cases.

    The scores wait in ``output`` until those of all shards are there. Those of label maps that have changed since, or
    with other classes or metrics, count as missing. While a case cannot be scored, the tables are without it, and the
    scores go on waiting: once the case is mended, only its shard needs to be repeated.

    Args:
        predictions: Folder of predicted label maps.
        references: Folder of reference label maps on the same grids.
        output: Folder for the tables, which all jobs share.
        labels: The classes.
        shard: The cases that this job scores.
        metrics: Metrics in addition to DSC and NSD, by column name.
        workers: Number of processes; by default one per CPU core that this process may use.

    Returns:
        The rows of ``scores.csv`` for all cases; None while the scores of other shards are missing.

    Raises:
        SomeCasesFailed: A case of the shard or, if the tables are written, of any shard cannot be read, or its grids
            differ; all others are scored.
        UserError: A folder is missing or has no volumes, a reference has no prediction, or no case of the shard can be
            scored.
    """
    console, layout = message_console(), ScoresLayout(output)
    pairs = match_pairs(predictions, references, console)
    mine = shard.of(pairs)
    make_folder(output)
    files = {pair.case: stamps.stamp_if_readable([pair.prediction, pair.reference]) for pair in mine}
    rows, failures = score_pairs(mine, labels, metrics, None, workers, console)
    settings = {"labels": labels.to_dict(), "metrics": list(metrics), "cases": [pair.case for pair in pairs]}
    record = {"settings": settings, "files": files, "rows": rows, "failures": failures}
    scores, done = None, "the others are scored"
    with alone(output / ".writing"):
        write_text(layout.part(shard), json.dumps(record))
        parts = {each: layout.part(each) for each in (Shard(k, shard.count) for k in range(1, shard.count + 1))}
        found = {each: _read(path, settings, each.of(pairs)) for each, path in parts.items()}
        missing = [str(each) for each, part in found.items() if part is None]
        if missing:
            of_shards = f"shard {shard} is scored; the tables are written when all are; missing: {', '.join(missing)}"
            if layout.table.exists():
                of_shards += f"; {layout.table} is of before, until all shards are repeated"
            console.print(of_shards)
        else:
            rows = {case: of_case for part in found.values() if part for case, of_case in part.rows.items()}
            failures = {case: message for part in found.values() if part for case, message in part.failures.items()}
            scores = write_tables(rows, pairs, output, labels, metrics)
            done = f"the other {len(rows)} are in {layout.table}"
            if not failures:  # or else they are needed when the case is mended
                for path in parts.values():
                    path.unlink()
    if failures:
        raise failure(failures, len(rows), done)
    return scores


def _read(path: Path, settings: Mapping[str, Any], pairs: Sequence[Pair]) -> _Part | None:
    """The part of a shard; None if there is none of these label maps with these settings."""
    try:
        record = json.loads(path.read_text())
        if record["settings"] != json.loads(json.dumps(settings)):
            return None
        known = record["files"]
        rows = {case: [tuple(row) for row in of_case] for case, of_case in record["rows"].items()}
        for pair in pairs:
            # Cases that cannot be read may have no stamps, and remain a failure.
            stamped = known[pair.case] or pair.case in rows
            if stamped and stamps.follow(known[pair.case], [pair.prediction, pair.reference]) is None:
                return None
        return _Part(rows, dict(record["failures"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
