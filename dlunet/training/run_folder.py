"""The folder of a training run: locking, and the checks before a run starts or resumes in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dlunet import stamps
from dlunet.errors import UserError, few
from dlunet.execution import EXECUTION, is_among
from dlunet.files import link_or_copy, remove_leftovers, write_if_changed, write_text
from dlunet.locks import FileLock
from dlunet.networks.checkpoint_files import read_checkpoint
from dlunet.provenance import provenance
from dlunet.run_layout import RunLayout
from dlunet.settings import flattened
from dlunet.training.full_disk import LogFile

log = logging.getLogger(__name__)

#: Settings that may differ between a run and its continuation.
FREE_ON_RESUME = (
    *EXECUTION,
    "callbacks",
    "trainer.max_epochs",
    "data.pseudo_labels",  # they may be moved: see keep_pseudo_labels
)


@dataclass(frozen=True)
class Done:
    """What a run has done.

    Attributes:
        checkpoint: The checkpoint to continue from; None: nothing is done.
        epochs: Finished epochs.
        steps: Finished steps, also of an epoch that is not finished.
        callbacks: The states of Lightning's callbacks, by their state keys.
    """

    checkpoint: Path | None
    epochs: int
    steps: int
    callbacks: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Path) -> Done:
        """What a checkpoint contains.

        Raises:
            UserError: It is damaged.
        """
        values = read_checkpoint(checkpoint)
        try:
            # Lightning counts an epoch as processed after its last step and validation.
            epochs = values["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            return cls(checkpoint, int(epochs), int(values["global_step"]), dict(values.get("callbacks", {})))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{checkpoint}: has no training state ({type(error).__name__}: {error}); expected a checkpoint that "
                "training wrote"
            ) from None


@dataclass(frozen=True)
class RunFolder(RunLayout):
    """The folder of a run; it may be moved and copied."""

    @property
    def has_run(self) -> bool:
        """Whether there is a run; the last checkpoint may be lost."""
        return self.last.exists() or self.previous.exists()

    def done(self) -> Done:
        """What is done, according to the last checkpoint, or to the one before if that is damaged or lost.

        Raises:
            UserError: Both are damaged or lost.
        """
        if not self.has_run:
            return Done(None, 0, 0)
        damages = []
        for checkpoint in (self.last, self.previous):
            if not checkpoint.exists():
                damages.append(f"{checkpoint}: is missing")
                continue
            try:
                found = Done.of(checkpoint)
            except UserError as error:
                damages.append(str(error))
                continue
            if damages:
                log.warning("warning: %s; continuing from the one before, %s", damages[0], checkpoint)
            return found
        raise UserError(f"{'; '.join(damages)}; restore one of them, or use output=FOLDER to train anew")

    def check_free(self, resume: bool) -> None:
        """Check that a new run does not start in the folder of an existing one.

        Raises:
            UserError: The folder contains a run that is not to be resumed, or cannot be.
        """
        if self.best.exists() and not self.has_run:
            raise UserError(
                f"{self.best}: found without {self.last.name} and {self.previous.name}, from which its run would be "
                "resumed; restore one of them, or use output=FOLDER to start another run"
            )
        if self.has_run and not resume:
            raise UserError(
                f"{self.path}: already contains a run; add resume=auto to continue it, or output=FOLDER to start "
                "another"
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder against other runs while the block runs, and copy the log to ``train.log``.

        Raises:
            UserError: Another run is writing to the folder.
        """
        lock = FileLock(self.path / ".writing", remove=True)
        if not lock.take():
            raise UserError(
                f"{self.path}: another run is writing to this folder; wait for it to end, or choose another folder: "
                "output=FOLDER"
            )
        handler = LogFile(self.log, encoding="utf-8", delay=True)  # a finished run is left untouched
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()
            lock.release()

    def check(self, settings: dict[str, Any]) -> Done:
        """Check that a run can start or resume with these settings, and return what is done.

        Raises:
            UserError: The run was started with other settings, or has more finished epochs than requested.
        """
        if self.has_run:
            self.check_same_settings(settings)
        done = self.done()
        wanted = settings["trainer"]["max_epochs"]
        if done.epochs > wanted:
            raise UserError(
                f"trainer.max_epochs: found {wanted}; expected at least {done.epochs}, the epochs already done in "
                f"{self.last}; or start another run with output=FOLDER"
            )
        return done

    def begin(self, settings: dict[str, Any]) -> Done:
        """Record the settings of a run that starts or resumes, and return what is done.

        Raises:
            UserError: See :meth:`check`.
        """
        done = self.check(settings)
        for folder in (self.path, self.checkpoints):
            remove_leftovers(folder)
        self.unlogged.unlink(missing_ok=True)
        write_if_changed(self.config, OmegaConf.to_yaml(OmegaConf.create(settings)))
        if done.checkpoint == self.previous:
            if self.last.exists():
                link_or_copy(self.last, self.last.with_name("damaged.ckpt"))
            link_or_copy(self.previous, self.last)
            done = replace(done, checkpoint=self.last)
        is_finished = done.epochs >= settings["trainer"]["max_epochs"]
        if not is_finished or not self.provenance.exists():  # else it is that of the training, not of this command
            write_text(self.provenance, json.dumps(provenance(), indent=2))
        return done

    def keep_cases(self, cases: Mapping[str, list[str]]) -> None:
        """Record the names of a run's cases by part, or check that they are unchanged since the run started.

        Raises:
            UserError: The cases changed; a former training case may now be a validation case.
        """
        known = _read_json(self.cases) if self.has_run else None
        changed = [] if known is None else [_difference(part, known.get(part, []), cases[part]) for part in cases]
        if any(changed):
            raise UserError(
                f"{self.path}: contains a run on other cases ({'; '.join(filter(None, changed))}); restore them, or "
                "start another run with output=FOLDER"
            )
        write_text(self.cases, json.dumps(cases, indent=2))

    def keep_pseudo_labels(self, files: Mapping[str, Path]) -> None:
        """Record the contents of the pseudo-labels of a run, or check that they are unchanged since the run started.

        Args:
            files: The label maps by case.

        Raises:
            UserError: The pseudo-labels changed: one run would be trained with two versions of them.
        """
        known = _read_json(self.pseudo_labels) if self.has_run else None
        if known is None:
            now = {case: stamps.stamp([path]) for case, path in files.items()}
        else:
            now = {
                case: followed for case, path in files.items() if (followed := stamps.follow(known.get(case), [path]))
            }
            if changed := sorted({*known, *files} - now.keys()):
                raise UserError(
                    f"{self.path}: contains a run on other pseudo-labels ({len(changed)} changed: {few(changed, 4)}); "
                    "restore them, or remove the folder to train anew"
                )
        write_if_changed(self.pseudo_labels, json.dumps(now, indent=2))

    def check_same_settings(self, now: dict[str, Any], only: Collection[str] | None = None) -> None:
        """Check the settings with which the run of the folder, if there is one, would be resumed.

        Args:
            now: The settings.
            only: Dotted names; by default all settings are checked.

        Raises:
            UserError: The run was started with other settings.
        """
        before = self._read_settings() if self.has_run else None
        if before is None:
            return
        old, new = flattened(before), flattened(now)
        checked = old | new if only is None else only
        changed = [k for k in checked if old.get(k) != new.get(k) and not is_among(k, FREE_ON_RESUME)]
        if changed:
            differences = "; ".join(f"{key}: found {old.get(key)}, now {new.get(key)}" for key in sorted(changed))
            raise UserError(
                f"{self.path}: contains a run with other settings ({differences}); set them back, or use output=FOLDER"
            )

    def _read_settings(self) -> Any:
        """The settings with which the run was started; None if the user deleted the file."""
        if not self.config.exists():
            return None
        try:
            settings = OmegaConf.to_container(OmegaConf.load(self.config))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
            settings, reason = None, str(error).splitlines()[0]
        else:
            reason = "it is empty"
        if not settings:
            raise UserError(
                f"{self.config}: is damaged ({reason}), so the settings of the run are unknown; delete it to continue "
                "with those of this command, or use output=FOLDER"
            )
        return settings


def _read_json(path: Path) -> dict[str, Any] | None:
    """The contents of a record; None for a run of an earlier version, or if the file was lost in a crash."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _difference(part: str, before: list[str], now: list[str]) -> str:
    """The cases added to and removed from a part, as a short text."""
    came, went = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    words = [f"{sign}{name}" for sign, names in (("+", came), ("-", went)) for name in names]
    return f"{part}: {few(words, 4)}" if words else ""
