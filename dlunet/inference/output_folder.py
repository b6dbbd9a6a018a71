"""The output folder of label maps, with their record and tables; several commands may share it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from dlunet.errors import UserError
from dlunet.files import remove_leftovers, write_text
from dlunet.inference.case_tables import read_case_table, write_case_table
from dlunet.labels import LabelSet
from dlunet.locks import alone
from dlunet.run_layout import PredictionsLayout
from dlunet.volumes import case_name


@dataclass(frozen=True)
class OutputFolder(PredictionsLayout):
    """A folder of predicted label maps with their record and tables."""

    def claim(self, images: Sequence[Path], settings: dict[str, Any], replace: bool) -> dict[Path, Path]:
        """Claim the folder for the labels of these CTs, and return the label path of each CT.

        The settings are recorded, so that labels made with other settings are never taken as finished. The CT of each
        label map is recorded as well, since the report shows both together.

        Args:
            images: The CTs.
            settings: The settings that the labels depend on.
            replace: Delete labels made with other settings instead of refusing the folder.

        Raises:
            UserError: The folder cannot be used for these CTs.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path}: cannot create directory ({error.strerror}); choose another output") from None
        targets = self._targets(images)
        settings = json.loads(json.dumps(settings))  # normalised to the form in which it is read back
        with self._writing():
            found = self._read_record() if self.record.exists() else {}
            changed = [key for key in settings if found.get(key) != settings[key]]
            if changed:
                known = [_difference(key, found.get(key), settings[key]) for key in changed] if found else []
                self._make_way(known, targets, replace)
                found = {}
            known_images = found.get("images", {}) | {case_name(image): str(image.resolve()) for image in images}
            # In the order of names: the same record, whichever of several jobs comes first.
            images_in_order = dict(sorted(known_images.items()))
            record = {**settings, "images": images_in_order, "warnings": found.get("warnings", {})}
            write_text(self.record, json.dumps(record, indent=2))
        remove_leftovers(self.path)
        return targets

    def note(self, name: str, warnings: Sequence[str]) -> None:
        """Record the warnings of a case, replacing earlier ones."""
        with self._writing():
            record = self._read_record()
            known = record.get("warnings", {})
            if warnings or name in known:
                others = {case: messages for case, messages in known.items() if case != name}
                changed = {**others, name: list(warnings)} if warnings else others
                write_text(self.record, json.dumps({**record, "warnings": dict(sorted(changed.items()))}, indent=2))

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

    def _make_way(self, changed: Sequence[str], targets: Mapping[Path, Path], replace: bool) -> None:
        """Delete label maps made with other settings, or raise. Without a record, only overwritten ones count."""
        labels = [path for path in sorted(self.path.glob("[!.]*.nii.gz")) if changed or path in targets.values()]
        if labels and not replace:
            reason = f"made with different settings ({'; '.join(changed)})" if changed else "made by something else"
            raise UserError(
                f"{self.path}: contains predictions {reason}, such as {labels[0].name}; choose another output, or "
                "empty it"
            )
        for path in labels:
            path.unlink()

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


def _difference(setting: str, before: Any, now: Any) -> str:
    found, wanted = (shorten(str(value), 60, placeholder=" …") for value in (before, now))
    return f"{setting}: found {found}, now {wanted}"
