"""What the processes that read patches need of the machine, checked before there are any."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence

from dlunet.errors import UserError
from dlunet.parallel import POOL_BYTES, check_shared_memory

#: Patches that a process has ready (PyTorch's default), and the bytes of one of their values.
PREFETCHED, VALUE_BYTES = 2, 4

#: Of the 107 bytes that the name of a socket may have, 32 are what Python adds to the folder of temporary files.
LONGEST_SOCKET_FOLDER = 75


def check_workers(num_workers: int, batch_size: int, patch_size: Sequence[int], images: int) -> None:
    """Check that processes can hand patches over, by sockets and in shared memory.

    Without room they fail one by one, and who waits for them waits for ever.

    Args:
        num_workers: Processes of each stream of patches.
        batch_size: Patches of a batch.
        patch_size: (z, y, x).
        images: Images and label maps in a step of batch size 1.

    Raises:
        UserError: There is too little shared memory, or the folder of temporary files has too long a name.
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
