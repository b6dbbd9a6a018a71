"""metrics.csv where there is no room for it: it stays whole, and no row is lost or doubled once there is."""

import errno
import logging
import resource
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from dlunet.errors import WriteError
from dlunet.training.metrics_file import metrics_logger

#: Some hundred kilobytes: the limit of `room_for` holds for files of pytest as well.
BEFORE = 20_000
ROWS = [{"train/loss": 1 / (step + 3)} for step in range(BEFORE + 12)]


@contextmanager
def room_for(size):
    """No file of this process can become larger: what is beyond fails as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def logger(tmp_path):
    return begun(tmp_path, "continue")


def begun(folder, on_full):
    """A logger that has written some rows; the epoch is not in all, and not in the first."""
    logger = metrics_logger(folder, 0, on_full)
    log(logger, range(10))
    log(logger, range(10, BEFORE), epoch=0)
    return logger


def log(logger, steps, **further):
    for step in steps:
        logger.experiment.log_metrics({**ROWS[step], **further}, step)
    logger.save()


def read(logger):
    return pd.read_csv(logger.path)


def check(logger, steps):
    found = read(logger)
    assert found["step"].tolist() == list(range(steps))
    assert found["train/loss"].tolist() == [row["train/loss"] for row in ROWS[:steps]]


@pytest.mark.parametrize("further", [{}, {"val/dsc": 0.5}])
def test_rows_for_which_there_is_no_room_follow_later(logger, further, caplog):
    """Also if they have a column that the file has not."""
    whole = logger.path.read_bytes()
    with room_for(len(whole) + 5), caplog.at_level(logging.WARNING):
        for step in range(BEFORE, BEFORE + 4):
            log(logger, [step], **further)
            assert logger.path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records if str(logger.path) in record.getMessage()] == [
        f"warning: {logger.path}: could not be written (File too large); check permissions and free space; training "
        "goes on, as checkpoint.on_full=continue says"
    ]
    log(logger, range(BEFORE + 4, BEFORE + 12), **further)
    check(logger, BEFORE + 12)
    assert {name: read(logger)[name].iloc[-1] for name in further} == further


def test_without_room_at_the_end_it_says_what_is_lost(logger, caplog):
    with room_for(logger.path.stat().st_size):
        log(logger, range(BEFORE, BEFORE + 3))
        logger.finalize("success")
    assert "the last 3 rows are lost" in caplog.records[-1].getMessage()
    check(logger, BEFORE)


def test_a_run_that_is_to_stop_does(tmp_path):
    logger = begun(tmp_path, "stop")
    with room_for(logger.path.stat().st_size), pytest.raises(WriteError, match=r"metrics\.csv: could not be written"):
        log(logger, [BEFORE])
    check(logger, BEFORE)


def test_another_error_leaves_the_file_whole(logger, monkeypatch):
    monkeypatch.setattr(type(logger.experiment), "save", half_a_row)
    with pytest.raises(OSError, match="Input/output error"):
        log(logger, [BEFORE])
    check(logger, BEFORE)
    monkeypatch.undo()
    log(logger, [])
    check(logger, BEFORE + 1)


def half_a_row(writer):
    with Path(writer.metrics_file_path).open("a") as file:
        file.write("4,0.1")
    raise OSError(errno.EIO, "Input/output error")


def test_a_resumed_run_that_is_killed_at_once_loses_no_row(logger, monkeypatch):
    whole = logger.path.read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", interrupt)
        metrics_logger(logger.path.parent, BEFORE - 1)
    assert logger.path.read_bytes() == whole


def test_a_file_without_any_row_is_said_to_be_damaged(logger, caplog):
    metrics_logger(logger.path.parent, BEFORE)
    assert not caplog.records
    logger.path.write_bytes(b"\x9b" * 200)
    metrics_logger(logger.path.parent, BEFORE)
    assert f"metrics.csv: is damaged: the metrics of the {BEFORE} steps so far are lost" in caplog.text


def interrupt(path, target):
    raise KeyboardInterrupt


def test_a_resumed_run_keeps_the_rows_of_before_if_there_is_no_room(logger):
    whole = logger.path.read_bytes()
    with room_for(len(whole) - 1000), pytest.raises(WriteError, match=r"metrics\.csv"):
        metrics_logger(logger.path.parent, BEFORE - 1, "continue")
    assert logger.path.read_bytes() == whole
    resumed = metrics_logger(logger.path.parent, BEFORE - 1, "continue")
    check(resumed, BEFORE - 1)
    log(resumed, [BEFORE - 1], **{"val/dsc": 0.5})
    check(resumed, BEFORE)
