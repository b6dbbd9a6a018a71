"""The command line: ``dlunet VERB …``, and what ``train.py`` and ``predict.py`` call.

Every verb takes Hydra overrides. Its config lies in ``conf/``, which the wheel carries.
"""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlunet.datasets import Case, labels_of, read_dataset_json
from dlunet.errors import UserError
from dlunet.labels import FLARE22, LabelSet
from dlunet.overrides import override, quote_literals
from dlunet.plugins import load_plugins, take_folder
from dlunet.settings import check_settings
from dlunet.signals import Stopped, signals_raise

if TYPE_CHECKING:
    from dlunet.training import RunFolder

PACKAGE = Path(__file__).parent
#: In the wheel the configs lie inside the package, in a checkout beside it.
CONFIGS = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

#: What the disk says when a result cannot be written.
OUT_OF_PLACE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
)

#: With this in the environment an error of Hydra's comes with its traceback.
FULL_ERROR = "HYDRA_FULL_ERROR"

#: Where Weights & Biases' own users say whether it is online, offline or disabled.
WANDB_MODE = "WANDB_MODE"

#: Overrides that say how and where a run takes place, not what it tries.
RUN_SETTINGS = ("data", "scale", "sweep", "logger", "test=", "resume", "trainer.", "output")


#: What an experiment consists of, in the order in which its name tells it.
PARTS = ("method", "network", "loss")

#: What some experiments consist of besides; a name tells it where the command line chooses it.
FURTHER_PARTS = ("pseudo_loss", "network@other_network")


def main() -> None:
    """``dlunet VERB [OVERRIDES…]``."""
    _print_whatever_comes()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())
    elif verb in VERBS:
        run_verb(verb, sys.argv[2:])
    else:
        print(f"dlunet: unknown verb {verb!r}\n\n{_help()}", file=sys.stderr)
        sys.exit(1)


def run_verb(verb: str, arguments: list[str] | None = None) -> None:
    """Run one verb with Hydra overrides; by default those of the command line."""
    _print_whatever_comes()
    _find_a_home()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        arguments, plug_ins = take_folder(arguments)
        if plug_ins is not None:
            load_plugins(plug_ins)
    except UserError as error:
        _fail(str(error))
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    sys.argv = [sys.argv[0], *with_default_scale(verb, quote_literals(arguments, sweep))]
    register_resolvers()
    task = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(_for_users(VERBS[verb]))
    traceback_wanted = FULL_ERROR in os.environ
    os.environ[FULL_ERROR] = "1"  # Hydra hands its errors on, and does not print them in its own words
    try:
        with signals_raise():
            task()
    except Stopped as stop:
        _fail(f"stopped by {stop.name}; what is finished is kept; rerun the command to resume", stop.exit_code)
    except (CompactHydraException, OmegaConfBaseException) as error:
        if traceback_wanted:
            raise
        _fail(f"{_in_short(error)}\n`dlunet {verb} --help` lists the settings")
    finally:
        if not traceback_wanted:
            del os.environ[FULL_ERROR]


def doctor(config: DictConfig) -> None:
    """Examine every case and list the problems: data=… data.root=…"""
    from rich.console import Console

    from dlunet.preparation import examine

    if "fold" in config.data:
        config.data.fold = "all"  # to look at the cases is no reason to draw folds
    diagnosis = examine(hydra.utils.instantiate(config.data.source), config.data.workers)
    diagnosis.print(Console())
    if diagnosis.problems:
        raise UserError(
            f"{config.data.root}: {len(diagnosis.problems)} problems, see above; what else there is can be used"
        )
    print(f"{config.data.root}: no problem found")


def train(config: DictConfig) -> None:
    """Train an experiment: experiment=ssl_light data=… scale=…"""
    _train(config)


def self_train(config: DictConfig) -> None:
    """Train a teacher, let it label the unlabelled CTs, train with these as crop positions: data=… data.root=…"""
    from dlunet.inference import Predictor, load_engine, predict_files

    output = Path(config.output)
    given = [word for word in HydraConfig.get().overrides.task if not word.startswith(("experiment=", "output="))]

    def step(name: str, experiment: str, *overrides: str) -> DictConfig:
        settings = [f"experiment={experiment}", override("output", output / name), "resume=auto", *given, *overrides]
        words = [word for word in settings if not word.startswith("teacher=")]
        config = hydra.compose("train", words, return_hydra_config=True)
        OmegaConf.set_struct(config, False)
        config.name = config.name  # its own choices name it, which Hydra's node tells, not those of this command
        del config["hydra"]
        return config

    unlabelled = hydra.utils.instantiate(config.data.source).unlabelled
    if len(unlabelled) < 2:  # known before the teacher is trained, not after
        raise UserError(
            f"{config.data.root}: found {len(unlabelled)} unlabelled cases; expected at least 2; add CTs without "
            "labels (data.unlabelled=FOLDER), or train on the labelled ones alone: dlunet train experiment=sup_light"
        )
    teacher = _train(step("teacher", config.teacher))
    pseudo_labels = output / "pseudo_labels"
    bundle, engine = load_engine(teacher)
    images = [case.image for case in unlabelled]
    predict_files(Predictor(bundle, engine=engine), images, pseudo_labels, replace=True)
    student = HydraConfig.get().runtime.choices["experiment"]
    _train(step("student", student, override("data.pseudo_labels", pseudo_labels)))


def prepare(config: DictConfig) -> None:
    """Prepare the cases that training reads: data=… data.root=…"""
    from dlunet.training import prepare as bring_up_to_date

    prepared = bring_up_to_date(config)
    counts = {part: len(getattr(prepared, part)) for part in ("labelled", "unlabelled", "validation")}
    print("prepared: " + ", ".join(f"{count} {part}" for part, count in counts.items()))
    print(f"plan: {prepared.labelled[0].folder.parents[1] / 'plan.yaml'}")


def predict(config: DictConfig) -> None:
    """Segment CTs: checkpoint=FILE input=FILE_OR_FOLDER output=FOLDER"""
    from dlunet.inference import Extras, Predictor, find_images, load_engine, predict_files
    from dlunet.inference.postprocessing import STEPS
    from dlunet.inference.sliding_window import FLIPPED_AXES

    if config.flips not in FLIPPED_AXES:
        raise UserError(f"flips: found {config.flips!r}; expected one of {', '.join(FLIPPED_AXES)}")
    if not 0 < config.tile_step <= 1:
        raise UserError(f"tile_step: found {config.tile_step}; expected a number above 0 and up to 1")
    steps = [config.postprocess] if isinstance(config.postprocess, str) else list(config.postprocess)
    if not set(steps) <= set(STEPS):
        raise UserError(f"postprocess: found {steps}; expected some of {', '.join(STEPS)}, as 'postprocess=[largest]'")
    bundle, engine = load_engine(Path(config.checkpoint), config.engine, config.device, config.precision)
    sources = config.input if isinstance(config.input, ListConfig) else [config.input]
    images = [image for source in sources for image in find_images(Path(str(source)))]
    print(f"engine: {engine.name}")
    predictor = Predictor(bundle, config.tile_step, config.flips, engine, tuple(steps))
    extras = Extras(config.volumes, config.overlay, plot=True)
    predict_files(predictor, images, Path(config.output), extras=extras, strict=config.strict)
    print(f"labels: {config.output}")


def export(config: DictConfig) -> None:
    """Write a network for another engine: checkpoint=FILE format=onnx|openvino|safetensors output=FOLDER"""
    from dlunet.inference import export_bundle
    from dlunet.networks import load_bundle

    export_bundle(load_bundle(Path(config.checkpoint)), config.format, Path(config.output))
    print(f"exported: {config.output}")


def evaluate(config: DictConfig) -> None:
    """Score label maps: predictions=FOLDER references=FOLDER output=FOLDER"""
    from dlunet.evaluation import evaluate_folder, find_metrics

    metrics = find_metrics([config.metrics] if isinstance(config.metrics, str) else config.metrics)
    predictions = Path(config.predictions)
    labels = _scored_labels(config, predictions)
    evaluate_folder(predictions, Path(config.references), Path(config.output), labels, metrics=metrics)
    print(f"scores: {config.output}")


def report(config: DictConfig) -> None:
    """Put runs or a sweep on one page: runs=FOLDER or 'runs=[FOLDER,…]' output=FOLDER"""
    from dlunet.reporting import print_report_summary, write_report

    folders = config.runs if isinstance(config.runs, ListConfig) else [config.runs]
    runs = [Path(folder) for folder in folders]
    print_report_summary(runs, write_report(runs, Path(config.output)))


VERBS: dict[str, Callable[[DictConfig], None]] = {
    "doctor": doctor,
    "prepare": prepare,
    "train": train,
    "self_train": self_train,
    "predict": predict,
    "export": export,
    "evaluate": evaluate,
    "report": report,
}


def _train(config: DictConfig) -> Path:
    """Train, score where that is wanted, and return the best checkpoint."""
    from dlunet.training import RunFolder
    from dlunet.training import train as fit

    cases = _cases_to_score(config) if config.test else []
    best = fit(config)
    print(f"best checkpoint: {best}")
    if cases:
        _score(cases, RunFolder(Path(config.output)))
    return best


def _scored_labels(config: DictConfig, predictions: Path) -> LabelSet | None:
    """The organs to score: those that the user names, else those of the checkpoint that predicted, if one did."""
    from dlunet.inference import OutputFolder

    if config.labels is None:
        return OutputFolder(predictions).labels()
    path = Path(config.labels)
    if str(path).lower() == FLARE22.name.lower() and not path.exists():
        return FLARE22
    return labels_of(path, read_dataset_json(path))


def _cases_to_score(config: DictConfig) -> list[Case]:
    """The test cases that have labels, or the validation cases where a dataset keeps its test labels to itself."""
    dataset = hydra.utils.instantiate(config.data.source)
    cases = [case for case in dataset.test if case.label is not None]
    if not cases:
        print(f"{config.data.root}: no test case has labels; the validation cases are scored instead")
        cases = list(dataset.validation)
    if not cases:
        raise UserError(f"{config.data.root}: no test or validation case has labels; train with test=false")
    return cases


def _score(cases: Sequence[Case], run: RunFolder) -> None:
    """Segment cases and score them, into the run folder."""
    from dlunet.evaluation import evaluate_folder
    from dlunet.inference import Predictor, load_engine, predict_files

    bundle, engine = load_engine(run.trained)
    # Labels of an earlier, shorter training of this run make way.
    images = [case.image for case in cases]
    predict_files(Predictor(bundle, engine=engine), images, run.predictions, replace=True)
    references = {case.name: case.label for case in cases if case.label is not None}
    evaluate_folder(run.predictions, references, run.scores, bundle.labels)


def _for_users(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Turn errors that a user can act on into one message and exit code 1."""

    def guarded(config: DictConfig) -> None:
        logging.captureWarnings(True)
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its own caches
        try:
            _check_complete(config)
            check_settings(config)
            _check_output(config)
            task(config)
        except UserError as error:
            _fail(str(error))
        except InstantiationException as error:
            # Hydra wraps what a config's class raises.
            if not isinstance(error.__cause__, UserError):
                raise
            _fail(str(error.__cause__))
        except OSError as error:
            if error.errno not in OUT_OF_PLACE:
                raise
            _fail(f"{error.filename or config.get('output', '')}: {error.strerror}; check permissions and free space")

    return guarded


def _check_output(config: DictConfig) -> None:
    """Whether the output folder can be made is known before any work is done; it is made once there is a result."""
    output = config.get("output")
    if output is None:
        return
    folder = Path(output)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists() or path.is_symlink())
    if not existing.is_dir():
        raise UserError(f"output={output}: cannot create directory: {existing} is not one; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"output={output}: cannot create directory: {existing} is not writable; choose another")


def _check_complete(config: DictConfig) -> None:
    missing = list(_missing_keys(OmegaConf.to_container(config, resolve=False)))
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; add {missing[0]}=… to the command")


def _missing_keys(values: Any, prefix: str = "") -> Iterator[str]:
    """The settings that have no value; those that refer to one of them are left out."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else key)
    elif values == "???":
        yield prefix


def _in_short(error: Exception) -> str:
    """Hydra's message without the advice that is not for users."""
    lines = str(error).partition("Config search path")[0].splitlines()
    return "\n".join(line for line in lines if line.strip() and not line.startswith(("To append", "See http")))


def _print_whatever_comes() -> None:
    """A letter that the terminal, or the file that is printed to, cannot show is no reason to stop."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream.encoding.lower() == "utf-8" else "replace")


def _find_a_home() -> None:
    """In a container, nothing may be known of the user; libraries that look for his home folder get a temporary one."""
    try:
        if os.access(Path.home(), os.W_OK | os.X_OK):
            return
    except RuntimeError:
        pass
    home = tempfile.mkdtemp(prefix="dlunet-home-")
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    os.environ["HOME"] = home
    os.environ.setdefault("USER", f"user{os.getuid()}")


def _fail(message: str, exit_code: int = 1) -> None:
    print(f"dlunet: {message}", file=sys.stderr)
    sys.exit(exit_code)


def register_resolvers() -> None:
    """The values that configs ask of the program."""
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("readable", _readable_name, replace=True)
    OmegaConf.register_new_resolver("stem", _folder_stem, replace=True)
    OmegaConf.register_new_resolver("wandb_offline", lambda: os.environ.get(WANDB_MODE) != "online", replace=True)


def _readable_name(overrides: Sequence[str]) -> str:
    """A folder name from what a run of a sweep sets, such as ``ssl_light_seed1``; how and where it runs is left out."""
    told = [word for word in overrides if not word.lstrip("+").startswith(RUN_SETTINGS)]
    # Characters that would have to be quoted on a command line are kept out.
    return "_".join(word.removeprefix("experiment=").replace("=", "").replace(",", "-") for word in told)


def _run_folder(single: str) -> str:
    """Where a run goes: its own place in a sweep, else ``single``."""
    in_sweep = HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN
    return HydraConfig.get().runtime.output_dir if in_sweep else single


def _run_name(experiment: str, *, _root_: DictConfig) -> str:
    """The experiment's name; the choices' own, where the command line chooses another part of an experiment."""
    if "hydra" in _root_:
        composed = _root_.hydra
    elif HydraConfig.initialized():
        composed = HydraConfig.get()
    else:
        return experiment
    chosen = {word.lstrip("+").partition("=")[0] for word in composed.overrides.task}
    further = [part for part in FURTHER_PARTS if part in chosen]
    if not further and not chosen & set(PARTS):
        return experiment
    return "-".join(composed.runtime.choices[part] for part in (*PARTS, *further))


def _folder_stem(root: str) -> str:
    """The name of a folder, such as ``Dataset042_Spleen``, fit to be a part of another folder's name."""
    return re.sub(r"[^\w.-]+", "-", Path(root).resolve().name)


def with_default_scale(verb: str, arguments: list[str]) -> list[str]:
    """Choose the scale by what the machine has, where the user did not."""
    if verb not in ("train", "prepare", "doctor", "self_train") or any(
        argument.startswith("scale=") for argument in arguments
    ):
        return arguments
    scale = f"scale={_gpu_scale(verb, arguments) if torch.cuda.is_available() else 'cpu'}"
    # Hydra wants all overrides in one row: flags may stand before or after them.
    first = next((k for k, word in enumerate(arguments) if "=" in word and not word.startswith("-")), len(arguments))
    return [*arguments[:first], scale, *arguments[first:]]


def _gpu_scale(verb: str, arguments: list[str]) -> str:
    """The scale on a GPU that the chosen dataset's config names; of a sweep, its first run's."""
    words = [word for word in arguments if "=" in word and not word.startswith("-")]
    _, plug_ins = take_folder(arguments)
    if plug_ins is not None:
        words.append(f"hydra.searchpath=['file://{plug_ins}']")
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        first_run = [
            f"{word.get_key_element()}={next(word.sweep_string_iterator())}" if word.is_sweep_override() else text
            for word, text in zip(parsed, words, strict=True)
        ]
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return hydra.compose(verb, first_run).data.get("gpu_scale", "auto")
    except CompactHydraException:  # the command itself meets it as well, and says so
        return "auto"


def _help() -> str:
    lines = [f"  {verb:<12}{(task.__doc__ or '').strip()}" for verb, task in VERBS.items()]
    return (
        "usage: dlunet VERB [key=value …]\n\n" + "\n".join(lines) + "\n\n`dlunet VERB --help` lists a verb's settings."
    )
