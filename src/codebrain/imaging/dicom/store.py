"""Where DICOM files lie: a folder tree, a zip archive or one file, read alike and within limits.

An archive is never unpacked under the names it holds: members are read as streams, and what a converter needs
is copied under numbers. Even so an archive with a name that leads out of it is refused as a whole.
"""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Protocol

from codebrain.errors import CodeBrainError, refusal

MAX_FILES = 50_000
"""Of one study with room to spare: a long examination has some 5,000."""

MAX_UNPACKED = 8 << 30
"""Bytes of all members of an archive together."""

_MAX_RATIO, _SMALL = 100, 64 << 20
"""Deflate packs zeros 1,032 to 1 and scans 2 or 3 to 1; small archives of empty images are left in peace."""

_CHUNK = 1 << 20
_MARK_AT, _MARK = 128, b"DICM"
_READ_TROUBLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)
"""What a disk and :mod:`zipfile` raise for a damaged, encrypted or exotically packed file."""


class Stream:
    """A stream of known size that never asks for more than is left: a forged length costs no memory.

    Args:
        raw: seekable.
        size: bytes in it.
        damaged: makes the refusal of an error that reading raises.
    """

    def __init__(self, raw: IO[bytes], size: int, damaged: Callable[[Exception], CodeBrainError]) -> None:
        self._raw, self.size, self._damaged = raw, size, damaged

    def read(self, count: int = -1) -> bytes:
        """At most ``count`` bytes, fewer at the end."""
        left = max(0, self.size - self._raw.tell())
        try:
            return self._raw.read(left if count < 0 else min(count, left))
        except _READ_TROUBLE as error:
            raise self._damaged(error) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file's."""
        try:
            return self._raw.seek(offset, whence)
        except _READ_TROUBLE as error:
            raise self._damaged(error) from error

    def tell(self) -> int:
        """As a file's."""
        return self._raw.tell()

    def chunks(self, count: int) -> Iterator[bytes]:
        """The next ``count`` bytes, a mebibyte at a time."""
        while count > 0 and (chunk := self.read(min(_CHUNK, count))):
            count -= len(chunk)
            yield chunk


class Store(Protocol):
    """DICOM files that were given together."""

    @property
    def path(self) -> Path:
        """As given; for the terminal only."""

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Every file's name inside the store and its size in bytes, in a fixed order.

        Raises:
            InputRefused: ``IN_TOO_BIG``, ``IN_NOT_A_FILE``, and for archives ``IN_UNSAFE``, ``IN_FORMAT``.
        """

    def stream(self, name: str) -> AbstractContextManager[Stream]:
        """One file."""

    def place(self, name: str) -> Path:
        """The file that ``name`` lies in, for refusals and to keep results apart from raw data."""


@dataclass(frozen=True)
class FolderStore:
    """A folder and all folders below it; links to folders are not followed."""

    path: Path

    def sizes(self) -> Iterator[tuple[str, int]]:
        for count, name in enumerate(_walk(self.path)):
            if count >= MAX_FILES:
                raise _too_many(self.path)
            try:
                status = (self.path / name).stat()
            except OSError:
                continue  # a link that leads nowhere
            if stat.S_ISREG(status.st_mode):
                yield name, status.st_size

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        with _readable(self.place(name)) as stream:
            yield stream

    def place(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class FileStore:
    """One DICOM file, for example an enhanced multi-frame object."""

    path: Path

    def sizes(self) -> Iterator[tuple[str, int]]:
        yield self.path.name, self.path.stat().st_size

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        with _readable(self.path) as stream:
            yield stream

    def place(self, name: str) -> Path:
        return self.path


@dataclass(frozen=True)
class ZipStore:
    """A zip archive; nested archives are not opened."""

    path: Path

    def sizes(self) -> Iterator[tuple[str, int]]:
        with self._archive() as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            self._judge(members)
            yield from sorted((member.filename, member.file_size) for member in members)

    @contextmanager
    def stream(self, name: str) -> Iterator[Stream]:
        with self._archive() as archive:
            try:
                member = archive.open(name, mode="r")
            except _READ_TROUBLE as error:
                raise self._damaged(error) from error
            with member:
                yield Stream(member, archive.getinfo(name).file_size, self._damaged)

    def place(self, name: str) -> Path:
        return self.path

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            archive = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise self._damaged(error) from error
        with archive:
            yield archive

    def _damaged(self, error: Exception) -> CodeBrainError:
        if isinstance(error, RuntimeError) and "password" in str(error):
            return refusal(
                "IN_FORMAT", "the archive is encrypted", file=self.path, hint="Unpack it and give the folder."
            )
        return refusal(
            "IN_CHECKSUM", f"the archive is damaged ({type(error).__name__})", file=self.path,
            hint="Copy or download it again, or unpack it and give the folder.",
        )  # fmt: skip

    def _judge(self, members: list[zipfile.ZipInfo]) -> None:
        if len(members) > MAX_FILES:
            raise _too_many(self.path)
        for member in members:
            _refuse_unsafe(member, self.path)
        unpacked, packed = sum(m.file_size for m in members), self.path.stat().st_size
        if unpacked > MAX_UNPACKED or (unpacked > _SMALL and unpacked > _MAX_RATIO * packed):
            raise refusal(
                "IN_TOO_BIG", "the archive unpacks to more than scans do", file=self.path,
                found=f"{unpacked} bytes from {packed}", expected=f"at most {MAX_UNPACKED}, {_MAX_RATIO} to 1",
                hint="It may be a decompression bomb; if not, unpack it and give the folder.",
            )  # fmt: skip


def _refuse_unsafe(member: zipfile.ZipInfo, path: Path) -> None:
    """``IN_UNSAFE`` for a member that is no plain file below the archive's own root."""
    windows = PureWindowsPath(member.filename)  # knows both slashes and drives
    kind = stat.S_IFMT(member.external_attr >> 16)
    if windows.drive or windows.root or ".." in windows.parts:
        what = "a name that leads out of it"
    elif kind not in (0, stat.S_IFREG):
        what = "a link or a device"
    else:
        return
    raise refusal(
        "IN_UNSAFE", f"the archive holds {what}", file=path, expected="plain files below its root",
        hint="Nothing was unpacked. Have the archive made again, or unpack it with care and give the folder.",
    )  # fmt: skip


def _too_many(path: Path) -> CodeBrainError:
    return refusal("IN_TOO_BIG", "there are too many files", file=path, expected=f"at most {MAX_FILES}",
                   hint="Give the folder of one examination.")  # fmt: skip


def _walk(folder: Path) -> Iterator[str]:
    """Names of all files below ``folder``, sorted within each folder."""

    def refuse(error: OSError) -> None:
        raise refusal("IN_NOT_A_FILE", f"the folder cannot be listed: {(error.strerror or '').lower()}", file=folder,
                      hint="Give a folder that you may read.") from error  # fmt: skip

    for place, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(place, name), folder)  # noqa: PTH118 (as os.walk names them)


@contextmanager
def _readable(path: Path) -> Iterator[Stream]:
    def trouble(error: Exception) -> CodeBrainError:
        code = "IN_PERMISSION" if isinstance(error, PermissionError) else "IN_NOT_A_FILE"
        reason = (getattr(error, "strerror", None) or type(error).__name__).lower()
        return refusal(code, f"the file cannot be read: {reason}", file=path, hint="Check the path, ask its owner.")

    try:
        raw = path.open("rb")
        size = path.stat().st_size
    except OSError as error:
        raise trouble(error) from error
    with raw:
        yield Stream(raw, size, trouble)


def open_store(path: Path) -> Store | None:
    """The store that ``path`` is; None for a file that is neither DICOM nor a zip archive."""
    try:
        if path.is_dir():
            return FolderStore(path)
        if not path.is_file():
            return None
    except OSError:  # a name that is too long, a folder above that is closed: reading says so
        return None
    with _readable(path) as stream:
        head = stream.read(_MARK_AT + len(_MARK))
    if head[_MARK_AT:] == _MARK:
        return FileStore(path)
    return ZipStore(path) if head.startswith(b"PK\x03\x04") else None
