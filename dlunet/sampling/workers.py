"""Checks the requirements of worker processes on the machine before any is started."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

from dlunet.errors import UserError
from dlunet.parallel import POOL_BYTES, check_shared_memory

#: Prefetched patches per worker (PyTorch's default), and bytes per value.
PREFETCHED, VALUE_BYTES = 2, 4

#: A socket path may have 107 bytes, of which Python appends 32 to the folder of temporary files.
LONGEST_SOCKET_FOLDER = 75


def check_workers(num_workers: int, batch_size: int, patch_size: Sequence[int], images: int) -> None:
    """Check that workers can pass patches to the main process, by sockets and shared memory.

    Without enough shared memory, workers fail one by one, and the main process waits for them forever.

    Args:
        num_workers: Worker processes per stream.
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
    patches = images * (PREFETCHED * num_workers + batch_size)
    needed = POOL_BYTES + patches * VALUE_BYTES * math.prod(patch_size)
    check_shared_memory(needed, setting, "sampling.num_workers=0")
