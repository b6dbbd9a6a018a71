"""Steps that cannot be taken: they stop the run, name their cases, and can be repeated."""

import importlib
import os
import re

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from dlunet.errors import UserError
from tests.commands import TINY

WORDS = ("train", *TINY, "experiment=ssl_light", "augmentation=none", "sampling.steps_per_epoch=4")

#: An augmentation that spoils the patches of one unlabelled case, and one that ends the process which reads them.
SPOILING = """
import os
from torch.utils.data import get_worker_info
from dlunet.sampling import Augmentation

class Spoiling(Augmentation):
    def __init__(self, case, deadly=False):
        super().__init__()
        self.case, self.deadly = case, deadly
        self.after = self.spoil

    def spoil(self, subject):
        if subject["case"] == self.case:
            if self.deadly and get_worker_info():
                os._exit(3)
            subject["image"].data[..., 0, 0, 0] = float("inf")
        return subject
"""


@pytest.fixture
def spoil(place, dlunet_process):
    """``spoil(output, case, …)`` trains with a case that is spoilt, which must fail, and returns the message."""
    (place / "spoiling.py").write_text(SPOILING)
    path = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])

    def run(output, case, *words):
        spoiling = ("augmentation._target_=spoiling.Spoiling", f"+augmentation.case={case}")
        return dlunet_process(
            *WORDS, *spoiling, f"output={output}", *words, cwd=place, fails=True, PYTHONPATH=path
        ).stderr

    return run


def test_a_step_that_is_not_finite_stops_the_run_and_can_be_repeated(place, spoil, dlunet):
    message = spoil("spoilt", "Case_00002")
    step, file = re.search(r"step (\d+), in epoch 0: gradients are not finite .*batch=(\S+);", message).groups()
    named = dict(re.findall(r"(\w+) \(weak(?:, label)?\): (\S+?)[;)]", message))
    assert "Case_00002" in {named["unlabelled_i"], named["unlabelled_j"]}
    saved = torch.load(place / file, weights_only=True)
    assert saved["step"] == int(step) and {k: v[0] for k, v in saved["cases"].items()} == named
    assert all(value.isfinite().all() for value in saved["state_dict"].values())  # as they were before the step
    wrong = {name for name, views in saved["batch"].items() if not views["weak"].isfinite().all()}
    assert {named[name] for name in wrong} == {"Case_00002"}

    printed = dlunet("debug", f"batch={file}", cwd=place).stdout
    for name, views in saved["batch"].items():
        line = next(line for line in printed.splitlines() if f"{name}, weak:" in line)
        assert (", 1 values not finite" in line) == (name in wrong) and named[name] in line
        assert "×".join(map(str, views["weak"].shape)) in line
    assert "weights of a: all finite" in printed and "whose input is not finite either" in printed
    assert "norm of the gradients of a: nan" in printed or "backward: " in printed
    (place / file).rename(place / "alone.pt")
    assert "config.yaml" in dlunet("debug", "batch=alone.pt", cwd=place, fails=True).stderr


def test_what_cannot_be_debugged(place, dlunet):
    (place / "text.pt").write_text("no tensors")
    assert "text.pt: is not a step" in dlunet("debug", "batch=text.pt", cwd=place, fails=True).stderr
    assert "none.pt: no such file" in dlunet("debug", "batch=none.pt", cwd=place, fails=True).stderr


@pytest.mark.parametrize("config", ["a: [1", "network: ${nothing}\nmethod: {_target_: x}"])
def test_the_config_of_a_run_is_damaged(tmp_path, monkeypatch, config):
    (tmp_path / "config.yaml").write_text(config)
    debugging = importlib.import_module("dlunet.training.debug")
    monkeypatch.setattr(debugging, "read_fault", lambda path: {"described": None})
    monkeypatch.setattr(debugging, "read_description", lambda described: (None, None))
    with pytest.raises(UserError, match=r"config.yaml: does not fit the step \(.*\); expected the config of the run"):
        next(debugging.debug(tmp_path / "checkpoints" / "step.pt"))


def test_a_reader_of_patches_that_ends_is_named_with_its_cases(spoil):
    message = spoil("deadly", "Case_00003", "+augmentation.deadly=true", "sampling.num_workers=1")
    assert "a process that reads patches was killed" in message and "labelled: FLARE22_Tr_" in message
    assert "Traceback" not in message and "(exit code 3; " in message and "sampling.num_workers=0" in message


@pytest.mark.slow
def test_a_reader_of_one_of_two_processes_is_named_with_its_cases(spoil):
    words = ("+augmentation.deadly=true", "sampling.num_workers=1", "trainer.devices=2", "trainer.accelerator=cpu")
    message = spoil("deadly-two", "Case_00003", *words)
    assert "a process that reads patches was killed" in message and "labelled: FLARE22_Tr_" in message
    assert "Traceback" not in message and "(exit code 3; " in message


@pytest.mark.parametrize("words", ["CUDA out of memory. Tried to allocate 2.00 GiB", "DefaultCPUAllocator: not enough"])
def test_too_little_memory_names_the_settings(place, dlunet, monkeypatch, words):
    def fail(*_):
        raise torch.OutOfMemoryError(words) if words.startswith("CUDA") else RuntimeError(words)

    monkeypatch.setattr("dlunet.training.module.SegmentationModule.gradients", fail)
    for batch in (2, 1):  # of one patch, a smaller batch is no advice
        settings = (f"sampling.batch_size={batch}", f"output={words[:4]}-{batch}")
        message = dlunet(*WORDS, *settings, cwd=place, fails=True).stderr
        assert words in message and "plan.patch_size=[16, 32, 32]" in message
        assert ("accumulate_grad_batches" in message) == (batch > 1)


KILLED = "RuntimeError: DataLoader worker (pid(s) 17) exited unexpectedly"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "out of memory (torch.Out"),
        (KILLED, f"a process that reads patches was killed, probably out of memory ({KILLED}); use fewer"),
        ("dlunet.errors.WriteError: run/last.ckpt: No space left", "run/last.ckpt: No space left"),
    ],
)
def test_errors_of_processes_that_were_started_are_said_in_the_same_words(place, dlunet, monkeypatch, error, words):
    text = f"\n\n-- Process 1 terminated with the following error:\nTraceback (most recent call last):\n  …\n{error}\n"

    def fail(*_, **__):
        raise ProcessRaisedException(text, 1, 4711)

    monkeypatch.setattr("lightning.Trainer.fit", fail)
    message = dlunet(*WORDS, f"output=started-{len(error)}", cwd=place, fails=True).stderr
    assert words in message and "Process 1" not in message


def test_a_prepared_case_that_cannot_be_read_is_prepared_again(place, dlunet):
    words = ("train", *TINY, "data.prepared=unreadable", "experiment=sup_light")
    dlunet(*words, "output=readable", cwd=place)
    damaged, missing, *_ = sorted((place / "unreadable").glob("*/labelled/*/image.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1000])
    missing.unlink()
    dlunet(*words, "output=unreadable-run", cwd=place)
    before, after = ((place / run / "metrics.csv").read_text() for run in ("readable", "unreadable-run"))
    assert before == after and damaged.is_file() and missing.is_file()
