"""The output folder of label maps, with their record and tables; several commands may share it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from dlunet import stamps
from dlunet.errors import UserError, WriteError, few
from dlunet.files import remove_leftovers, write_text
from dlunet.inference.case_tables import read_case_table, write_case_table
from dlunet.labels import LabelSet
from dlunet.locks import alone
from dlunet.run_layout import PredictionsLayout
from dlunet.shards import ALL, Shard
from dlunet.volumes import case_name

logger = logging.getLogger(__name__)

#: The setting that has the name of the engine.
ENGINE = "engine"


@dataclass(frozen=True)
class OutputFolder(PredictionsLayout):
    """A folder of predicted label maps with their record and tables."""

    def claim(
        self, images: Sequence[Path], settings: dict[str, Any], replace: bool, shard: Shard = ALL
    ) -> dict[Path, Path]:
        """Claim the folder for the labels of these CTs, and return the label path of each CT of the shard.

        The settings are recorded, so that labels made with other settings are never taken as finished. So is the CT of
        each label map with its stamps: a label map is deleted, and thus made again, if its CT has changed since. That
        of another CT of the same name is left alone, and the folder refused.

        Args:
            images: The CTs.
            settings: The settings that the labels depend on.
            replace: Delete labels made with other settings, or from other CTs, instead of refusing the folder. Those of
                another engine are kept: engines agree up to rounding.
            shard: Which of the CTs this job segments.

        Raises:
            UserError: The folder cannot be used for these CTs.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot create directory ({error.strerror}); choose another output") from None
        targets = self._targets(images)
        mine = {image: targets[image] for image in shard.of(list(targets))}
        with self._writing():
            found = self._read_record() if self.record.exists() else {}
            differences = _differences(found, settings)
            if found and replace and differences.keys() == {ENGINE}:
                logger.info("%s: finished label maps are kept (%s)", self.path, differences[ENGINE])
            elif differences:
                self._make_way(differences if found else {}, targets, replace)
                found = {}
            record = {**settings, **{key: found.get(key, {}) for key in ("images", "stamps", "warnings")}}
            self._write_record(self._follow_cts(record, mine, replace))
        remove_leftovers(self.path)
        return mine

    def note(self, image: Path, settings: dict[str, Any], stamp: stamps.Stamps, warnings: Sequence[str]) -> None:
        """Record the CT and the warnings of a case, replacing earlier ones; to be called before its labels are written.

        Args:
            image: The CT.
            settings: Those with which the folder was claimed.
            stamp: The CT's stamps, taken before it was read: if it changes meanwhile, its labels are made again.
            warnings: Of the CT and its labels.

        Raises:
            WriteError: Another command has claimed the folder with other settings since.
        """
        with self._writing():
            found = self._read_record()
            if differences := _differences(found, settings):
                raise WriteError(
                    f"{self.path}: is now used by another command with different settings "
                    f"({'; '.join(differences.values())}); rerun this one with another output=FOLDER"
                )
            record = _with_ct(found, image, stamp)
            others = {case: messages for case, messages in record["warnings"].items() if case != case_name(image)}
            self._write_record(
                {**record, "warnings": {**others, case_name(image): list(warnings)} if warnings else others}
            )

    def warnings(self) -> dict[str, list[str]]:
        """The recorded warnings of finished cases and their CTs, by case."""
        return self._read_record()["warnings"]

    def knows(self, image: Path) -> bool:
        """Whether the label map of a CT, or one that was there before, was made by a command like this one."""
        return case_name(image) in self._read_record()["images"]

    def add(self, table: str, row: dict[str, str]) -> None:
        """Add a case's row to a table, replacing an earlier one; rows are in the order of their cases."""
        with self._writing():
            rows = read_case_table(self.path / table) | {row["case"]: row}
            write_case_table(self.path / table, dict(sorted(rows.items())))

    def labels(self) -> LabelSet | None:
        """The label set of its label maps; None if the folder has no record.

        Raises:
            UserError: The record is damaged.
        """
        if not self.record.exists():
            return None
        try:
            return LabelSet.from_dict(self._read_record()["labels"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.record}: does not list the labels ({error}); pass labels=dataset.json") from None

    def _targets(self, images: Sequence[Path]) -> dict[Path, Path]:
        names = [case_name(path) for path in images]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise UserError(
                f"several inputs are named {repeated[0]}: names must be unique, since label maps are written to "
                f"{self.path / repeated[0]}.nii.gz; rename one, or predict them into different folders"
            )
        within = [path for path in images if path.resolve().parent == self.path.resolve()]
        if within:
            raise UserError(
                f"{self.path}: contains the input CTs, such as {within[0].name}; label maps have the same names; "
                "choose another output"
            )
        longest = os.pathconf(self.path, "PC_NAME_MAX") - len(".nii.gz")
        for path, name in zip(images, names, strict=True):
            length = len(os.fsencode(name))
            if length > longest:
                raise UserError(f"{path}: its name has {length} bytes; expected at most {longest}; rename it")
        return {path: self.path / f"{name}.nii.gz" for path, name in zip(images, names, strict=True)}

    def _make_way(self, changed: Mapping[str, str], targets: Mapping[Path, Path], replace: bool) -> None:
        """Delete label maps made with other settings, or raise. Without a record, only overwritten ones count."""
        labels = [path for path in sorted(self.path.glob("[!.]*.nii.gz")) if changed or path in targets.values()]
        if labels and not replace:
            reason = "made by something else"
            if changed:
                reason = f"made with different settings ({'; '.join(changed.values())})"
            instead = "request that engine, device and precision" if changed.keys() == {ENGINE} else "empty it"
            raise UserError(
                f"{self.path}: contains predictions {reason}, such as {labels[0].name}; choose another output, or "
                f"{instead}"
            )
        if labels:
            logger.warning(
                "warning: %s: %d label maps of other settings are deleted (%s)",
                self.path,
                len(labels),
                "; ".join(changed.values()) or "without a record of how they were made",
            )
        for path in labels:
            path.unlink()

    def _follow_cts(self, record: dict[str, Any], targets: Mapping[Path, Path], replace: bool) -> dict[str, Any]:
        """Delete the label maps whose CTs have changed; return the record with the places of the other CTs."""
        again = []
        for image, target in targets.items():
            # Of a CT that is gone nothing can be made, and its label map may still be right.
            if target.exists() and os.access(image, os.R_OK):
                stamp = _same_ct(record, image)
                if stamp is not None:
                    record = _with_ct(record, image, stamp)
                    continue
                before = record["images"].get(case_name(image))
                if before != str(image.resolve()) and not replace:
                    raise UserError(
                        f"{target}: was made from another CT of this name, {before}, not from {image}; choose another "
                        "output, or delete the label map"
                    )
                again.append(image)
        for image in again:
            targets[image].unlink()
        if again:
            logger.warning(
                "warning: %s: contains label maps of CTs that have changed, which are made again: %s",
                self.path,
                few([case_name(image) for image in again], 20),
            )
        return record

    def _write_record(self, record: Mapping[str, Any]) -> None:
        # In the order of names: the same record, whichever of several jobs comes first.
        in_order = {key: dict(sorted(record[key].items())) for key in ("images", "stamps", "warnings")}
        write_text(self.record, json.dumps({**record, **in_order}, indent=2))

    def _read_record(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.record.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.record}: is damaged ({error}); delete it together with the label maps beside it"
            ) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock the folder's tables and record against other commands while the block runs."""
        with alone(self.path / ".writing"):
            yield


def _differences(record: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, str]:
    """The settings that differ from those of a record, in words, by name."""
    now = json.loads(json.dumps(settings))  # in the form in which a record is read back: lists for tuples
    return {key: _difference(key, record.get(key), value) for key, value in now.items() if record.get(key) != value}


def _difference(setting: str, before: Any, now: Any) -> str:
    found, wanted = (shorten(str(value), 60, placeholder=" …") for value in (before, now))
    return f"{setting}: found {found}, now {wanted}"


def _same_ct(record: Mapping[str, Any], image: Path) -> stamps.Stamps | None:
    """Up-to-date stamps of a CT if the label map in the folder was made from it, wherever it was then; else None."""
    name = case_name(image)
    if name in record["stamps"]:
        return stamps.follow(record["stamps"][name], [image])
    if record["images"].get(name) != str(image.resolve()):
        return None
    return stamps.stamp_if_readable([image]) or None  # from an earlier version, without stamps: they count from now on


def _with_ct(record: Mapping[str, Any], image: Path, stamp: stamps.Stamps) -> dict[str, Any]:
    """The record with the place and the stamps of a CT."""
    images = {**record["images"], case_name(image): str(image.resolve())}
    return {**record, "images": images, "stamps": {**record["stamps"], case_name(image): stamp}}
