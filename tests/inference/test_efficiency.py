"""Memory and CPU usage over time, measured under loads of known size."""

import os
import time

import numpy as np
import pytest

from dlunet.inference.efficiency import Monitor

MEGABYTES, SECONDS = 300, 0.6


def test_each_case_has_its_own_peak_and_areas():
    with Monitor() as monitor:
        load = np.ones(MEGABYTES * 2**17)  # 8 bytes each
        time.sleep(SECONDS)
        high = monitor.finish("high")
        del load
        low_begin = time.perf_counter()
        time.sleep(SECONDS)
        low = monitor.finish("low")
        low_seconds = time.perf_counter() - low_begin
    assert (high.case, low.case) == ("high", "low")
    assert low.seconds == pytest.approx(low_seconds, abs=0.1) and high.seconds >= SECONDS
    base = low.ram_area_mb_s / low.seconds
    assert high.ram_peak_mb - base == pytest.approx(MEGABYTES, rel=0.1)
    assert high.ram_area_mb_s == pytest.approx(high.seconds * (base + MEGABYTES), rel=0.15)
    assert high.gpu_peak_mb == high.gpu_area_mb_s == 0
    assert len(monitor.samples) >= 2 * SECONDS / 0.1 - 2


def test_processor_time_is_a_part_of_all_cores():
    with Monitor() as monitor:
        begin, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - begin < SECONDS:
            pass
        used = time.process_time() - used
        busy = monitor.finish("busy")
        time.sleep(SECONDS)
        idle = monitor.finish("idle")
    expected = 100 * used / os.cpu_count()
    assert busy.cpu_area_percent_s == pytest.approx(expected, rel=0.35)
    assert idle.cpu_area_percent_s < 0.5 * expected
