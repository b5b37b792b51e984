"""Reads a few known files out of a `.tar.gz`, into memory.

Nothing is extracted, so a member's path, link target, owner or device number has nothing to act on. The archive is
walked as a stream with a ceiling on what it may expand to: the standard library's `tarfile` reads extended headers
of any size into memory and parses them in more than linear time, and CIFAR's archives have none.

Format: POSIX.1-1988 ustar, https://www.gnu.org/software/tar/manual/html_node/Standard.html
"""

from __future__ import annotations

import gzip
import itertools
import posixpath
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fastcifar.data.errors import quote, refuse
from fastcifar.data.files import open_plain

# CIFAR-10's and CIFAR-100's archives expand to 187 MB; deflate can make 1,032 bytes of one.
MAX_EXPANDED_BYTES = 1 << 30
MAX_MEMBERS = 1_000
_BLOCK_BYTES = 512
_CHUNK_BYTES = 1 << 20
A_FILE = "a file of CIFAR"


class Member(NamedTuple):
    """The header of one member."""

    name: str
    num_bytes: int
    is_file: bool


def find_folder(path: Path, known: Collection[str]) -> str | None:
    """Which of the `known` top folders the archive's first members lie in, or None; `DataError` for no archive."""
    for member, _ in itertools.islice(_Archive(path), 16):
        folder = posixpath.normpath(member.name).partition("/")[0]
        if folder in known:
            return folder
    return None


def read_members(path: Path, wanted: Mapping[str, int]) -> dict[str, bytes]:
    """The bytes of those members whose names are in `wanted` (name: the most bytes that it may have).

    Members that are not there are left out of the result. The whole archive is read, so that gzip's checksum is
    checked. `DataError` for an archive that is cut off or damaged, that expands to more than 1 GiB, and for a wanted
    member that is no plain file, is too large or comes twice.
    """
    found: dict[str, bytes] = {}
    archive = _Archive(path)
    for member, body in archive:
        name = posixpath.normpath(member.name)
        if name not in wanted:
            continue
        what = f"{path}:{name}"
        if not member.is_file:
            raise refuse(what, "is a link, a folder or a device in the archive", "a plain file")
        if name in found:
            raise refuse(what, "is in the archive twice", "once")
        if member.num_bytes > wanted[name]:
            raise refuse(what, f"has {member.num_bytes:,} bytes", f"at most {wanted[name]:,}")
        found[name] = b"".join(body)
    return found


class _Archive:
    """Iterates over (header, chunks of the body); chunks that the caller leaves are skipped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: gzip.GzipFile
        self.num_read_bytes = 0

    def __iter__(self) -> Iterator[tuple[Member, Iterator[bytes]]]:
        with open_plain(self.path, A_FILE) as file, gzip.GzipFile(fileobj=file) as self.stream:
            for _ in range(MAX_MEMBERS):
                header = self._read(_BLOCK_BYTES, or_nothing=True)
                if not any(header):
                    break
                member = self._parse(header)
                body = self._body(member.num_bytes)
                yield member, body
                for _ in body:
                    pass
                self._read(-member.num_bytes % _BLOCK_BYTES)
            else:
                raise refuse(self.path, f"holds more than {MAX_MEMBERS:,} files", "CIFAR's eight")
            while self._inflate(_CHUNK_BYTES):
                pass  # the padding, up to gzip's checksum

    def _body(self, num_bytes: int) -> Iterator[bytes]:
        while num_bytes > 0:
            chunk = self._read(min(num_bytes, _CHUNK_BYTES))
            num_bytes -= len(chunk)
            yield chunk

    def _read(self, num_bytes: int, or_nothing: bool = False) -> bytes:
        chunk = self._inflate(num_bytes)
        if len(chunk) < num_bytes and not (or_nothing and not chunk):
            raise refuse(self.path, f"the tar archive ends early, at byte {self.num_read_bytes:,}", "a whole archive")
        return chunk

    def _inflate(self, num_bytes: int) -> bytes:
        at = f"at byte {self.num_read_bytes:,} of what it holds"
        try:
            chunk = self.stream.read(num_bytes)
        except EOFError:
            raise refuse(self.path, f"ends early, {at}", "a whole .tar.gz") from None
        except (zlib.error, OSError) as error:
            raise refuse(self.path, f"is damaged or no .tar.gz, {at} ({error})", "a whole .tar.gz") from None
        self.num_read_bytes += len(chunk)
        if self.num_read_bytes > MAX_EXPANDED_BYTES:
            raise refuse(self.path, f"expands to more than {MAX_EXPANDED_BYTES:,} bytes", "about 187,000,000")
        return chunk

    def _parse(self, header: bytes) -> Member:
        try:
            checksum = int(header[148:156].strip(b" \0") or b"0", 8)
            num_bytes = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            checksum = num_bytes = -1
        if num_bytes < 0 or checksum != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
            at = f"at byte {self.num_read_bytes - _BLOCK_BYTES:,} of what it holds"
            raise refuse(self.path, f"is no tar archive or is damaged, {at}: {quote(header[:16])}", "a member's header")
        name = header[:100].split(b"\0")[0]
        prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
        kind = header[156:157]
        # Links and devices have no body, whatever their size field says.
        has_body = kind not in b"123456"
        full_name = (prefix + b"/" + name if prefix else name).decode("latin-1")
        return Member(full_name, num_bytes if has_body else 0, kind in (b"0", b"\0"))
