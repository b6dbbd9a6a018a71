"""Decompress gzip and zlib streams with ISA-L, which verifies their checksums."""

from __future__ import annotations

import io
from typing import BinaryIO

from isal.igzip_lib import DECOMP_GZIP, DECOMP_ZLIB, IgzipDecompressor, IsalError

#: The first bytes of a gzip stream.
MAGIC = b"\x1f\x8b"

#: Highest compression ratio: a stream expands to at most this many bytes per compressed byte.
MOST_BYTES_PER_BYTE = 1032

#: Exceptions raised by reading a damaged or truncated stream.
DAMAGE: tuple[type[Exception], ...] = (EOFError, IsalError)  # type: ignore[assignment]  # the stubs declare an instance

_CHUNK_BYTES = 2**22


class Gunzip(io.RawIOBase):
    """The contents of a gzip stream (all members) or a zlib stream; trailing bytes are ignored.

    Args:
        file: The compressed file, positioned at the start of the stream.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        start = file.read(len(MAGIC))
        file.seek(-len(start), io.SEEK_CUR)
        self.kind = DECOMP_GZIP if start == MAGIC else DECOMP_ZLIB
        self.member = IgzipDecompressor(flag=self.kind)
        self.ended = False

    def readable(self) -> bool:
        """See :class:`io.RawIOBase`."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """See :class:`io.RawIOBase`."""
        while not self.ended:
            given = self.file.read(_CHUNK_BYTES) if self.member.needs_input else b""
            if self.member.needs_input and not given:
                raise EOFError("the compressed stream has no end")
            data = self.member.decompress(given, len(buffer))
            if self.member.eof:
                self._begin_next_member()
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _begin_next_member(self) -> None:
        rest = self.member.unused_data
        rest += self.file.read(len(MAGIC) - len(rest)) if len(rest) < len(MAGIC) else b""
        self.ended = self.kind != DECOMP_GZIP or not rest.startswith(MAGIC)
        self.file.seek(-len(rest), io.SEEK_CUR)
        self.member = IgzipDecompressor(flag=self.kind)


def read_to_the_end(file: BinaryIO) -> None:
    """Read the rest of a stream, so that its checksum is verified."""
    while file.read(_CHUNK_BYTES):
        pass
