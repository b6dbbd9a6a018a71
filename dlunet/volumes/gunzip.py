"""The contents of files compressed by gzip or zlib, unpacked by ISA-L, which checks them against their checksum."""

from __future__ import annotations

import io
from typing import BinaryIO

from isal.igzip_lib import DECOMP_GZIP, DECOMP_ZLIB, IgzipDecompressor, IsalError

#: The first bytes of a gzip stream.
MAGIC = b"\x1f\x8b"

#: No stream holds more than so many bytes for each of its own.
MOST_BYTES_PER_BYTE = 1032

#: What reading a damaged or truncated stream raises.
DAMAGE: tuple[type[Exception], ...] = (EOFError, IsalError)  # type: ignore[assignment]  # its stubs say instance

_CHUNK_BYTES = 2**22


class Gunzip(io.RawIOBase):
    """The contents of a gzip stream, of all its members, or of a zlib stream; what follows is passed over.

    Args:
        file: The compressed file, open where the stream begins.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        start = file.read(len(MAGIC))
        file.seek(-len(start), io.SEEK_CUR)
        self.kind = DECOMP_GZIP if start == MAGIC else DECOMP_ZLIB
        self.member = IgzipDecompressor(flag=self.kind)
        self.ended = False

    def readable(self) -> bool:
        """As of any file."""
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """As of any file."""
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
    """Read what is left of a stream, so that it is checked against its checksum."""
    while file.read(_CHUNK_BYTES):
        pass
