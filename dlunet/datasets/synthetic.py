"""The built-in default dataset: synthetic abdomens in FLARE22's layout, generated on first use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dlunet.datasets.cases import Dataset
from dlunet.datasets.flare22 import read_flare22


def open_phantoms(
    root: Path | str,
    labelled: int = 10,
    unlabelled: int = 40,
    validation: int = 4,
    test: int = 8,
    workers: int | None = None,
    seed: int = 0,
    all_labelled: bool = False,
) -> Dataset:
    """Generate the cases missing under ``root`` and list them.

    Args:
        root: The dataset's folder.
        labelled: Training cases with labels.
        unlabelled: Training cases without labels.
        validation: Validation cases.
        test: Test cases.
        workers: Processes; by default one per core.
        seed: Determines every case.
        all_labelled: Whether the unlabelled cases are listed as labelled ones too, with the truth that the generator
            knows: the ceiling of what they can teach.

    Raises:
        UserError: ``root`` contains phantoms made with other arguments, or cannot be written.
    """
    from dlunet.phantom import truth_of, write_phantoms

    root = Path(root)
    write_phantoms(root, labelled, unlabelled, validation, test, seed, workers=workers, truth=all_labelled)
    found = read_flare22(root)
    dataset = replace(
        found,
        labelled=found.labelled[:labelled],
        unlabelled=found.unlabelled[:unlabelled],
        validation=found.validation[:validation],
        test=found.test[:test],
    )
    if not all_labelled:
        return dataset
    known = tuple(replace(case, label=truth_of(root, case.image)) for case in dataset.unlabelled)
    return replace(dataset, labelled=dataset.labelled + known, unlabelled=())
