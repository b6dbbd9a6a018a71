"""Commands that make a table of the paper from nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from dlunet.errors import UserError
from experiments.paper_tables import make_table as tables

ROOT = Path(__file__).parents[1]
TINY = ["data.root=flare22", "data=flare22", "scale=tiny", "logger=csv", "trainer.accelerator=cpu", "seed=0,1"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["scale=paper"], ["loss_dice_ce", "sup_nnunet"]),
        (["scale=cpu", "recipe=paper"], ["loss_dice_ce", "sup_nnunet"]),
        (["scale=cpu"], ["loss_dice_ce", "loss_nrd_tce"]),  # recipe=best: the first row of table 3 has another loss
        (["scale=cpu", "recipe=plain"], ["sup_nnunet", "loss_nrd_tce"]),
        (["scale=paper", "network.features=[8,16,32,64,64,64]"], ["loss_dice_ce", "sup_nnunet"]),
    ],
)
def test_what_tables_3_and_4_share_is_trained_once(settings, expected):
    assert tables.trained(4, settings) == expected
    assert tables.trained(3, settings) == ["sup_nnunet", "ssl_nnunet", "sup_light", "ssl_light"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["experiment=ssl_light"], "found experiment=ssl_light; expected a setting of `dlunet train` that"),
        (["--config-dir=mine"], "found --config-dir=mine; expected a setting"),
        (["seed=range(3)"], r"seed: found range\(3\); expected whole numbers"),
        (["data=flare22"], "missing: data.root"),
        (["scale=huge"], "Could not find 'scale/huge'"),
        (["loss.denominator=squared"], "Could not override 'loss.denominator'"),  # which one of its two losses lacks
    ],
)
def test_settings_that_are_not_for_a_table_are_refused_before_any_work(settings, message, monkeypatch):
    monkeypatch.setattr(tables, "dlunet", None)
    with pytest.raises(UserError, match=message):
        tables.make_table(4, settings)


def test_other_settings_have_another_folder():
    settings = ["data=flare22", "scale=cpu", "recipe=paper", "logger=csv", "hydra/launcher=joblib", "loss@x=[a,b]"]
    assert tables.told(settings) == ["loss@x[a-b]", "recipepaper"]
    changed = ["trainer.max_epochs=72", "callback=early_stopping", "data.source.labelled=4", "data.workers=1"]
    assert tables.told(changed) == ["callbackearly_stopping", "data.source.labelled4", "trainer.max_epochs72"]
    assert tables.split([*settings, "seed=2,0,2"]) == (["2", "0"], settings)


@pytest.mark.parametrize("words", [[], ["8"], ["three"]])
def test_another_number_is_refused(words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_table.py", *words])
    with pytest.raises(SystemExit, match="expected the number of a table, from 3 to 7"):
        tables.main()


@pytest.fixture
def make(tiny_flare22, tmp_path, monkeypatch):
    """``make(number)`` makes a table in an empty project with a tiny FLARE22."""
    tiny_flare22(tmp_path / "flare22")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    return lambda number: pd.read_csv(tables.make_table(number, TINY) / f"table{number}.csv")


@pytest.mark.slow
def test_all_tables_with_five_experiments(make, tmp_path):
    values = {number: make(number) for number in (4, 3, 5, 6, 7)}
    sweep = tmp_path / "sweeps" / "tables-flare22-tiny"
    experiments = {"sup_nnunet", "ssl_nnunet", "sup_light", "ssl_light", "loss_dice_ce"}
    assert {run.parent.name for run in sweep.glob("*/config.yaml")} == {
        f"{name}_seed{seed}" for name in experiments for seed in (0, 1)
    }
    for number, table in values.items():
        ours = table[table["source"] == "ours"]
        assert len(ours) and ours["mean"].between(0, 1).all(), number
    same = [values[3].query("row == 'nnU-Net w/o SSL'"), values[4].query("row == 'NRD+TCE'")]
    means = [table[table["source"] == "ours"]["mean"].tolist() for table in same]
    assert means[0] == means[1]
    flips = values[5].query("source == 'ours' and column == 'Mean'").set_index("row")["mean"]
    assert flips["DLUNet+tta"] == flips["DLUNet+tta+RAM"] != flips["DLUNet"]
    assert (sweep / "table6" / "figure3.png").is_file()


@pytest.mark.slow
def test_a_killed_command_that_is_run_again_gives_the_same_table(make, tmp_path):
    expected = make(4)
    (tmp_path / "sweeps").rename(tmp_path / "uninterrupted")
    code = f"from experiments.paper_tables import make_table as t; t.ROOT = t.Path('.'); t.make_table(4, {TINY})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env=environment)
        begun = len(list((tmp_path / "sweeps").glob("*/*/checkpoints/last.ckpt")))
        while len(list((tmp_path / "sweeps").glob("*/*/checkpoints/last.ckpt"))) == begun and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL
    pd.testing.assert_frame_equal(make(4), expected)
