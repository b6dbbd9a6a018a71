"""How many worker processes make batches, and what they require of the machine, checked before any is started."""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Sequence

from dlunet.errors import UserError
from dlunet.parallel import POOL_BYTES, available_cores, check_shared_memory

#: Batches that each worker has ready, and bytes per value.
PREFETCHED, VALUE_BYTES = 2, 4

#: The cores for each worker, and the most workers, where their number is not set.
CORES_EACH, MOST_WORKERS = 4, 4

#: A socket path may have 107 bytes, of which Python appends 32 to the folder of temporary files.
LONGEST_SOCKET_FOLDER = 75


def worker_count(setting: int | None, processes: int = 1) -> int:
    """The number of workers: as set, or so few that the step keeps its cores; none where forking is not safe.

    Args:
        setting: The number, if it is set.
        processes: How many processes of a training share the cores; each of them has the number of workers.
    """
    if setting is not None:
        return setting
    return max(1, min(available_cores() // (CORES_EACH * processes), MOST_WORKERS)) if sys.platform == "linux" else 0


def check_workers(num_workers: int, batch_size: int, patch_size: Sequence[int], images: int) -> None:
    """Check that workers can pass patches to the main process, by sockets and shared memory.

    Without enough shared memory, workers fail one by one, and the main process waits for them forever.

    Args:
        num_workers: Number of worker processes.
        batch_size: Patches per batch.
        patch_size: (z, y, x).
        images: Number of images and label maps in a step of batch size 1.

    Raises:
        UserError: There is too little shared memory, or the path of the folder of temporary files is too long.
    """
    if num_workers == 0:
        return
    setting, folder = f"sampling.num_workers={num_workers}", tempfile.gettempdir()
    length = len(os.fsencode(folder))
    if length > LONGEST_SOCKET_FOLDER:
        raise UserError(
            f"TMPDIR={folder}: the name has {length} bytes; {setting} creates sockets there, which allows at most "
            f"{LONGEST_SOCKET_FOLDER}; set TMPDIR=/tmp, or sampling.num_workers=0"
        )
    patches = images * batch_size * (PREFETCHED * num_workers + 1)
    needed = POOL_BYTES + patches * VALUE_BYTES * math.prod(patch_size)
    check_shared_memory(needed, setting, "sampling.num_workers=0")
