"""The provenance of a result: commit, package versions and machine, saved beside it."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

#: Results written by scripts: they change nothing that is trained.
RESULTS = ("benchmarks/results/**", "experiments/*/results/**")
PACKAGES = ("dlunet", "torch", "lightning", "torchio", "torchmetrics", "hydra-core", "SimpleITK", "numpy", "scipy")


def provenance() -> dict[str, Any]:
    """The current state of the code and the machine."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": _git_state(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {
            "system": platform.system(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        },
    }


def _git_state() -> dict[str, Any] | None:
    """The commit and whether files other than results differ from it; None outside a checkout."""
    folder = Path(__file__).parent
    but_results = [":/", *(f":(top,exclude,glob){pattern}" for pattern in RESULTS)]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", *but_results))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
