"""The command line: ``dlunet COMMAND …`` and the entry points of ``train.py`` and ``predict.py``.

Every command accepts Hydra overrides. Its config is in ``conf/``, which is included in the wheel.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dlunet import sweeps
from dlunet.configs import (
    CONFIGS,
    choices_that_are_no_names,
    in_short,
    swept_settings,
    with_default_scale,
    without_hydra,
)
from dlunet.datasets import dataset_of
from dlunet.errors import UserError
from dlunet.overrides import override, quote_literals
from dlunet.plugins import load_plugins, take_folder
from dlunet.requeue import requeue
from dlunet.run_layout import SelfTrainingLayout
from dlunet.settings import unused_of_recipe
from dlunet.shards import Shard
from dlunet.signals import Stopped, ignore_further, signals_raise
from dlunet.task import Task, fail

log = logging.getLogger(__name__)

#: Overrides that concern self-training as a whole; all others apply to each of its trainings.
SELF_TRAINING = ("experiment=", "output=", "teacher=", "rounds=", "agreement=", "final=")

#: Hydra's flags that it takes for one run alone.
OF_ONE_RUN = {"--cfg", "-c", "--info", "-i", "--run", "-r", "--shell-completion", "-sc"}

#: Environment variable that makes Hydra errors print a traceback.
FULL_ERROR = "HYDRA_FULL_ERROR"


def main() -> None:
    """Entry point of ``dlunet COMMAND [OVERRIDES…]``."""
    _print_whatever_comes()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())
    elif verb in VERBS:
        run_verb(verb, sys.argv[2:])
    else:
        print(f"dlunet: unknown command {verb!r}\n\n{_help()}", file=sys.stderr)
        sys.exit(1)


def run_verb(verb: str, arguments: list[str] | None = None) -> None:
    """Run one command with Hydra overrides, by default those of the command line."""
    _print_whatever_comes()
    _find_a_home()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        arguments, plug_ins = take_folder(arguments)
        if plug_ins is not None:
            load_plugins(plug_ins)
    except UserError as error:
        fail(str(error))
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    if sweep and (flags := OF_ONE_RUN & {argument.partition("=")[0] for argument in arguments}):
        fail(f"{', '.join(sorted(flags))}: found with -m, a sweep; expected one run: leave out -m")
    if sweep and "TORCHELASTIC_RUN_ID" in os.environ:
        fail("-m: found in a process of torchrun; expected one process, whose runs start the others: trainer.devices=N")
    sys.argv = [sys.argv[0], *with_default_scale(verb, quote_literals(arguments, sweep))]
    if wrong := choices_that_are_no_names(sys.argv[1:]):
        fail(f"{', '.join(wrong)}: expected the name of a choice; `dlunet {verb} --help` lists them")
    command = Task(VERBS[verb], swept_settings(sys.argv[1:]) if sweep else (), plug_ins)
    task = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(command)
    traceback_wanted = FULL_ERROR in os.environ
    os.environ[FULL_ERROR] = "1"  # makes Hydra raise its errors instead of printing them itself
    try:
        with signals_raise():  # also while the job is requeued: a further signal must not end that
            try:
                task()
            except Stopped as stop:
                ignore_further()
                fail(f"stopped by {stop.name}; finished work is kept; {_how_to_resume(stop, verb)}", stop.exit_code)
        if failed := sweeps.failures():
            fail(failed)
    except (CompactHydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        fail(f"{in_short(error)}\n`dlunet {verb} --help` lists the settings")
    except Exception as error:
        if traceback_wanted or not (ended := sweeps.failures(ended_by=error)):
            raise
        fail(f"{ended}; {FULL_ERROR}=1 shows where it ended")
    finally:
        if not traceback_wanted:
            del os.environ[FULL_ERROR]


def _how_to_resume(stop: Stopped, verb: str) -> str:
    if verb == "train" and not sweeps.RememberCommand.resumes:
        return "add resume=auto to resume"
    return requeue(stop.number) or "rerun the command to resume"


def doctor(config: DictConfig) -> None:
    """Check every case and list the problems: data=… data.root=…"""
    from rich.console import Console

    from dlunet.preparation import examine

    if "fold" in config.data:
        config.data.fold = "all"  # examining cases should not draw folds
    diagnosis = examine(dataset_of(config), config.data.workers)
    diagnosis.print(Console())
    if diagnosis.problems:
        raise UserError(
            f"{config.data.root}: {len(diagnosis.problems)} problems, listed above; all other cases can be used"
        )
    print(f"{config.data.root}: no problems found")


def train(config: DictConfig) -> float | None:
    """Train: experiment=ssl_light data=… scale=…"""
    from dlunet import pipelines
    from dlunet.training.metrics_file import best_value

    if unused := unused_of_recipe(config, HydraConfig.get().overrides.task):
        log.warning("%s: has no effect here; see the settings of method and scale", ", ".join(unused))
    pipelines.train(config)
    in_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
    return best_value(Path(config.output), "val/dsc") if in_sweep else None


def self_train(config: DictConfig) -> None:
    """Train a teacher, pseudo-label the unlabelled CTs, train the student: data=… data.root=…"""
    from dlunet import pipelines

    given = HydraConfig.get().overrides.task
    _check_final(config, given)
    if config.data.pseudo_labels is not None:
        raise UserError(
            f"data.pseudo_labels: found {config.data.pseudo_labels}; expected none, since self_train predicts them; "
            "leave it out, or train on yours: dlunet train"
        )
    shared = [word for word in given if not word.startswith(SELF_TRAINING)]
    layout = SelfTrainingLayout(Path(config.output))

    def compose_training(folder: Path, experiment: str) -> DictConfig:
        words = [f"experiment={experiment}", override("output", folder), "resume=auto", *shared]
        try:
            return without_hydra(hydra.compose("train", words, return_hydra_config=True))
        except CompactHydraException as error:  # such as an experiment that does not exist
            raise UserError(in_short(error)) from None

    experiments = [HydraConfig.get().runtime.choices["experiment"]] * config.rounds
    if config.final is not None:
        experiments[-1] = config.final
    pipelines.self_train(
        compose_training(layout.teacher, config.teacher),
        [compose_training(layout.round(number).student, name) for number, name in enumerate(experiments, start=1)],
        layout.path,
        config.agreement,
    )


def prepare(config: DictConfig) -> None:
    """Prepare the cases for training: data=… data.root=…"""
    from dlunet.training import prepare as bring_up_to_date
    from dlunet.training.data import prepared_folder

    shard = Shard.parse(config.shard)
    prepared = bring_up_to_date(config, shard=shard)
    counts = {part: len(getattr(prepared, part)) for part in ("labelled", "unlabelled", "validation")}
    of = "" if shard.is_all else f"shard {shard}: "
    print(f"{of}prepared: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    print(f"plan: {prepared_folder(config) / 'plan.yaml'}")


def predict(config: DictConfig) -> None:
    """Segment CTs: checkpoint=FILE input=FILE_OR_FOLDER output=FOLDER"""
    from dlunet import pipelines

    print(f"labels: {pipelines.predict(config)}")


def export(config: DictConfig) -> None:
    """Export a network: checkpoint=FILE format=onnx|openvino|safetensors output=FOLDER"""
    from dlunet.inference import export_bundle
    from dlunet.networks import load_bundle

    export_bundle(load_bundle(Path(config.checkpoint)), config.format, Path(config.output))
    print(f"exported: {config.output}")


def debug(config: DictConfig) -> None:
    """Repeat a step that stopped a training: batch=runs/…/faults/step-N.pt"""
    from dlunet.training.debug import debug as repeat

    for line in repeat(Path(config.batch)):
        print(line)


def evaluate(config: DictConfig) -> None:
    """Score label maps: predictions=FOLDER references=FOLDER output=FOLDER"""
    from dlunet import scoring

    scoring.evaluate(config)


def report(config: DictConfig) -> None:
    """Report runs on one page: runs=FOLDER output=FOLDER [floor=NAME …] [table=N], or predictions=… references=…"""
    from dlunet import scoring

    scoring.report(config)


VERBS: dict[str, Callable[[DictConfig], float | None]] = {
    "doctor": doctor,
    "prepare": prepare,
    "train": train,
    "self_train": self_train,
    "predict": predict,
    "export": export,
    "evaluate": evaluate,
    "report": report,
    "debug": debug,
}


def _check_final(config: DictConfig, given: Sequence[str]) -> None:
    """Check that the last student of self-training can have an experiment of its own, if it is to have one."""
    if config.final is None:
        return
    if config.rounds == 1:
        raise UserError(
            f"final: found {config.final} with rounds=1; expected rounds=2 or more; the only student's experiment is "
            f"set by experiment={config.final}"
        )
    clash = [word for word in given if word.startswith(("method=", "network="))]
    if clash:
        raise UserError(
            f"final: found {config.final} with {clash[0]}, which would apply to every training; expected one of the "
            "two; choose methods and networks by experiment=, teacher= and final="
        )


def _print_whatever_comes() -> None:
    """Replace characters that the terminal or output file cannot encode, instead of failing on them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower() == "utf-8" else "replace")


def _find_a_home() -> None:
    """Provide a temporary home folder where the user has none, as in a container: some libraries require one."""
    try:
        if os.access(Path.home(), os.W_OK | os.X_OK):
            return
    except RuntimeError:
        pass
    home = tempfile.mkdtemp(prefix="dlunet-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home
    os.environ.setdefault("USER", f"user{os.getuid()}")


def _help() -> str:
    lines = [f"  {verb:<12}{(task.__doc__ or '').strip()}" for verb, task in VERBS.items()]
    return (
        "usage: dlunet COMMAND [key=value …]\n\n" + "\n".join(lines) + "\n\n`dlunet COMMAND --help` lists its settings."
    )
