"""The patches of a training step, labelled and unlabelled, by method, epoch and process."""

import multiprocessing
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
import torchio as tio

from dlunet.errors import UserError
from dlunet.labels import FLARE22
from dlunet.methods import CrossPseudo, PseudoLabel, Stream, Supervised
from dlunet.preparation import Intensity, Plan, PreparedCase, PreparedDataset
from dlunet.preparation.store import save_index
from dlunet.sampling import Augmentation, PatchDataModule, RandomGamma, RandomNoise

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")  # Lightning's own

PATCH, STEPS, BATCH = (4, 6, 6), 12, 2


@pytest.fixture
def make_prepared(make_case):
    """A dataset whose voxels contain the number of their case: 1, 2, … if labelled, 101, 102, … if unlabelled."""

    def make(labelled=5, unlabelled=7, validation=1):
        plan = Plan((2.5, 1.5, 1.5), PATCH, Intensity(0, 1, 0, 1))

        def part(count, start, has_label):
            label = np.ones(PATCH, np.uint8) if has_label else None
            return tuple(make_case(f"{start + k}", np.full(PATCH, start + k), label) for k in range(count))

        parts = (part(labelled, 1, True), part(unlabelled, 101, False), part(validation, 201, True))
        return PreparedDataset(FLARE22, plan, *parts)

    return make


def make_module(prepared, method, epoch=0, step=0, rank=0, world_size=1, batch=BATCH, accumulated=1, seed=0, workers=0):
    module = PatchDataModule(
        prepared, method, Augmentation(), batch, STEPS, num_workers=workers, seed=seed,
        accumulate_grad_batches=accumulated,
    )  # fmt: skip
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, current_epoch=epoch, global_step=step)
    module.check_cases()
    return module


def case_numbers(batch):
    """The cases in each stream of a batch, read from the middle voxel, which is never padding."""
    return {name: views["weak"][:, 0, 2, 3, 3].tolist() for name, views in batch.items()}


def steps(module):
    """For each step, the numbers of the cases in each of its streams."""
    batches = [module.on_before_batch_transfer(batch, 0) for batch, *_ in module.train_dataloader()]
    for batch in batches:
        assert all(views["weak"].shape == (BATCH, 1, *PATCH) for views in batch.values())
        assert [name for name, views in batch.items() if "label" in views] == ["labelled"]
        assert batch["labelled"]["label"].shape == (BATCH, *PATCH)
    return [case_numbers(batch) for batch in batches]


def test_each_step_gets_one_labelled_and_two_unlabelled_batches_of_different_cases(make_prepared):
    seen = steps(make_module(make_prepared(), CrossPseudo()))
    assert len(seen) == STEPS
    for step in seen:
        assert set(step) == {"labelled", "unlabelled_i", "unlabelled_j"}
        assert all(i != j for i, j in zip(step["unlabelled_i"], step["unlabelled_j"], strict=True))
    for stream, cases in (
        ("labelled", range(1, 6)),
        ("unlabelled_i", range(101, 108)),
        ("unlabelled_j", range(101, 108)),
    ):
        assert {case for step in seen for case in step[stream]} == set(cases)


class ThreeStreams(Supervised):
    """The second stream differs from the first in its cases, the third from the second."""

    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "i": Stream(labelled=False),
        "j": Stream(labelled=False, other_than="i"),
        "k": Stream(labelled=False, other_than="j"),
    }


def test_streams_that_differ_from_one_another_in_a_chain(make_prepared):
    for step in steps(make_module(make_prepared(), ThreeStreams())):
        for cases in zip(step["i"], step["j"], step["k"], strict=True):
            assert len(set(cases)) == 3


class OneNetwork(Supervised):
    """A method with one network and several views of unlabelled patches, of which it uses twice as many."""

    streams = {  # noqa: RUF012
        "labelled": Stream(labelled=True),
        "unlabelled": Stream(labelled=False, views=("weak", "strong", "strong_2"), times=2),
    }


def test_views_of_a_patch_share_its_geometry_and_each_is_drawn_anew(make_prepared):
    strong = [tio.RandomNoise(mean=0, std=(1e-3, 1e-2))]
    flips = tio.RandomFlip(axes=(0, 1, 2), flip_probability=0.5)
    prepared = make_prepared()
    for case in prepared.unlabelled:
        case.image[:] = case.image + np.arange(case.image.size).reshape(case.image.shape) % 90  # not constant
    seen = []
    for workers in (0, 1):
        augmentation = Augmentation(flip=flips, strong=strong)
        module = PatchDataModule(prepared, OneNetwork(), augmentation, BATCH, STEPS, num_workers=workers)
        module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, global_step=0)
        batches = [module.on_before_batch_transfer(batch, 0) for batch, *_ in module.train_dataloader()]
        seen.append([batch["unlabelled"] for batch in batches])
        assert all(set(batch["labelled"]) == {"weak", "label"} for batch in batches)
    assert len({tuple(views["weak"].flatten().tolist()) for views in seen[0]}) == STEPS
    for views, again in zip(*seen, strict=True):
        assert all(torch.equal(views[name], again[name]) for name in views)
        assert set(views) == {"weak", "strong", "strong_2"}
        assert all(patches.shape == (2 * BATCH, 1, *PATCH) for patches in views.values())
        for name in ("strong", "strong_2"):
            assert 0 < (views[name] - views["weak"]).abs().max() < 0.1
        assert not torch.equal(views["strong"], views["strong_2"])


def test_pseudo_labelled_streams_draw_cases_with_a_stored_pseudo_label_alone(make_prepared):
    """Each patch comes with the pseudo-label of its own case, here the case's number less 100."""
    prepared = make_prepared(unlabelled=7)
    cases = list(prepared.unlabelled)
    for k, as_target in ((1, True), (3, False), (4, True), (5, True)):
        index = cases[k].folder.with_name(f"pseudo-{k}")
        save_index(index, np.full(PATCH, k + 1, np.uint8), {}, as_target)
        cases[k] = PreparedCase.open(cases[k].folder, index)
    module = make_module(replace(prepared, unlabelled=tuple(cases)), PseudoLabel())
    seen = set()
    for batch in (module.on_before_batch_transfer(batch, 0) for batch, *_ in module.train_dataloader()):
        for image, label in zip(*(batch["pseudo_labelled"][key] for key in ("weak", "label")), strict=True):
            inside = image[0] > 0
            assert label.shape == PATCH and torch.equal(image[0][inside], label[inside] + 100.0)
            seen |= set(label[inside].tolist())
    assert seen == {2, 5, 6}
    with pytest.raises(UserError, match="found 0 pseudo-labelled cases; expected at least 1"):
        make_module(prepared, PseudoLabel())


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_the_stated_fraction_of_patches_is_centred_on_the_foreground(make_case, fraction):
    """The one voxel of a class lies in a corner, which few of the other patches contain."""
    label = np.zeros((12, 18, 18), np.uint8)
    label[0, 0, 0] = 1
    case = make_case("1", np.ones(label.shape), label)
    prepared = PreparedDataset(FLARE22, Plan((1, 1, 1), PATCH, Intensity(0, 1, 0, 1)), (case,), (), ())
    module = PatchDataModule(prepared, Supervised(), Augmentation(), 4, 100, foreground_fraction=fraction)
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=0, global_step=0)
    batches = [module.on_before_batch_transfer(batch, 0) for batch, *_ in module.train_dataloader()]
    found = np.mean([patch.any().item() for batch in batches for patch in batch["labelled"]["label"]])
    assert found == pytest.approx(fraction, abs=0.08 if 0 < fraction < 1 else 0.02)  # 400 patches


@pytest.mark.parametrize(("method", "epoch"), [(Supervised(), 5), (CrossPseudo(supervised_epochs=3), 2)])
def test_supervised_epochs_have_no_unlabelled_streams(make_prepared, method, epoch):
    seen = steps(make_module(make_prepared(), method, epoch=epoch))
    assert len(seen) == STEPS and all(set(step) == {"labelled"} for step in seen)


def test_an_epoch_depends_on_the_seed_and_its_number_alone(make_prepared):
    prepared, method = make_prepared(), CrossPseudo(supervised_epochs=3)
    third = steps(make_module(prepared, method, epoch=3))
    resumed = make_module(prepared, method, epoch=0, workers=1)
    resumed.trainer.current_epoch = 3
    assert steps(resumed) == third
    assert steps(make_module(prepared, method, epoch=4)) != third
    assert steps(make_module(prepared, method, epoch=3, seed=1)) != third


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, STEPS - 1])
def test_a_run_that_is_resumed_within_an_epoch_gets_the_rest_of_it(make_prepared, step, workers):
    prepared = make_prepared()
    expected = steps(make_module(prepared, CrossPseudo(), epoch=2))
    resumed = make_module(prepared, CrossPseudo(), epoch=2, step=2 * STEPS + step, workers=workers)
    assert len(resumed.train_dataloader()._iterables) == STEPS
    assert steps(resumed) == expected[step:]
    resumed.trainer.current_epoch, resumed.trainer.global_step = 3, 3 * STEPS
    assert steps(resumed) == steps(make_module(prepared, CrossPseudo(), epoch=3))
    resumed.teardown()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_processes_share_the_patches_of_a_step(make_prepared, accumulated):
    """Of each batch, the first process has the first half."""
    prepared = make_prepared(labelled=5, unlabelled=7)

    def patches(**settings):
        module = make_module(prepared, CrossPseudo(), epoch=2, accumulated=accumulated, **settings)
        return [batch for batch, *_ in module.train_dataloader()]

    alone = patches(batch=2 * BATCH)
    shares = [patches(rank=rank, world_size=2) for rank in (0, 1)]
    for step, (whole, *parts) in enumerate(zip(alone, *shares, strict=True)):
        for stream, views in whole.items():
            for view, values in views.items():
                found = [part[stream][view].chunk(accumulated) for part in parts]
                expected = torch.cat([half for batch in zip(*found, strict=True) for half in batch])
                torch.testing.assert_close(values, expected, rtol=0, atol=0, msg=f"{step}, {stream}, {view}")


@pytest.mark.parametrize(("cases", "processes"), [(1, 1), (5, 1), (5, 2), (3, 3), (7, 4)])
def test_processes_share_the_validation_cases(make_prepared, cases, processes):
    prepared = make_prepared(validation=cases)

    def numbers(rank):
        module = make_module(prepared, Supervised(), rank=rank, world_size=processes)
        return [int(case["image"][0, 2, 3, 3]) for case in module.val_dataloader()]

    shares = [numbers(rank) for rank in range(processes)]
    assert [*chain.from_iterable(shares)] == list(range(201, 201 + cases))  # in order: the mean is that of one process
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_processes_that_are_more_than_the_validation_cases_all_have_all(make_prepared):
    prepared = make_prepared(validation=2)
    for rank in range(3):
        module = make_module(prepared, Supervised(), rank=rank, world_size=3)
        assert len(module.val_dataloader()) == 2  # a process without a case would not wait for the others


@pytest.mark.parametrize(
    ("method", "labelled", "unlabelled", "message"),
    [
        (Supervised(), 0, 0, "found 0 labelled cases; expected at least 1"),
        (CrossPseudo(), 2, 1, "found 1 unlabelled cases; expected at least 2"),
        (OneNetwork(), 2, 0, "found 0 unlabelled cases; expected at least 1"),
    ],
)
def test_too_few_cases(make_prepared, method, labelled, unlabelled, message):
    with pytest.raises(UserError, match=message):
        make_module(make_prepared(labelled, unlabelled), method)
    assert make_module(make_prepared(2, 0), Supervised())


class Recorder(lightning.LightningModule):
    """Records the cases that Lightning passes to it."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.seen, self.validated = [], []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, case_numbers(batch)))

    def validation_step(self, batch, index):
        self.validated.append((tuple(batch["image"].shape), batch["label"].dtype, batch["image"].max().item()))

    def configure_optimizers(self):
        return None


@pytest.mark.filterwarnings("ignore")
def test_under_lightnings_own_trainer(make_prepared, tmp_path):
    """Streams change with the epoch, and validation gets complete cases."""
    prepared, method, recorder = make_prepared(), CrossPseudo(supervised_epochs=1), Recorder()
    module = PatchDataModule(prepared, method, Augmentation(), BATCH, STEPS)
    lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    ).fit(recorder, datamodule=module)
    for epoch in (0, 1):
        expected = steps(make_module(prepared, method, epoch=epoch))
        assert [step for e, step in recorder.seen if e == epoch] == expected
    assert recorder.validated == [((1, *PATCH), torch.uint8, 201)] * 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_do_not_depend_on_the_number_of_workers(make_prepared, workers):
    """With every kind of draw, over several epochs, and in a run that resumes; other generators stay as they are."""
    augmentation = Augmentation(
        tio.RandomAffine(scales=(0.7, 1.4), degrees=30, isotropic=True, default_pad_value=0),
        0.5,
        intensity=[tio.RandomNoise(p=0.5), RandomNoise(p=0.5), RandomGamma(p=0.5)],
        flip=tio.RandomFlip(axes=(0, 1, 2)),
        strong=[tio.RandomBlur(p=0.5)],
    )

    def batches(workers, epochs):
        module = PatchDataModule(make_prepared(), OneNetwork(), augmentation, BATCH, STEPS, num_workers=workers)
        state, found = torch.random.get_rng_state(), []
        for epoch in epochs:
            module.trainer = SimpleNamespace(global_rank=0, world_size=1, current_epoch=epoch, global_step=0)
            found += [batch for batch, *_ in module.train_dataloader()]
        module.teardown()
        assert torch.equal(torch.random.get_rng_state(), state)
        return found

    expected = batches(0, [0, 1])
    for found, wanted in ((batches(workers, [0, 1]), expected), (batches(workers, [1]), expected[STEPS:])):
        for batch, again in zip(found, wanted, strict=True):
            for stream, views in again.items():
                assert all(torch.equal(batch[stream][name], view) for name, view in views.items())


def test_an_error_in_a_patch_is_the_user_s(make_prepared):
    prepared = make_prepared()
    for case in prepared.labelled:
        (case.folder / "image.npy").unlink()
    for workers in (0, 1):
        module = make_module(prepared, Supervised(), workers=workers)
        with pytest.raises(UserError, match=r"^\S+image\.npy: is damaged .* rerun the command$"):
            steps(module)
        module.teardown()
    assert not multiprocessing.active_children()
