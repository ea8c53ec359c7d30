"""Mappings of pools: the own daemon's (writable) and those that views point
into (read-only).

A path is opened, looked up by device and inode, and mapped only when it is
new. The first page is compared with what was told. A mapping goes when it was
dropped from the cache and the last view into it is gone.
Failure modes: a path that cannot be opened is Unsupported (another user or PID
namespace); a file that is not what was told is Stale (its daemon was replaced).
"""
from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import time
from typing import Dict, Optional, Tuple

from .errors import Internal, Stale, Unsupported

_HEADER = struct.Struct("<8sII16sQ")  # magic, version, header, incarnation, size
_MAGIC = b"KVFPOOL1"
_HEADER_SIZE = 4096
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_SEAL_SHRINK = 2


class Mapping:
    """One mapped pool. `view` and `readonly` cover the whole file."""

    def __init__(self, fd: int, size: int, write: bool) -> None:
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, prot)
        self.size = size
        self.view = memoryview(self._map)
        self.readonly = self.view.toreadonly()
        self.key = (0, 0, write)

    def check(self, size: Optional[int], incarnation: Optional[bytes]) -> None:
        """Raises Stale unless the header says what was told. A view may also
        point into a region of another engine, which has no header: then
        nothing was told."""
        if incarnation is None and (self.size < _HEADER_SIZE
                                    or self.view[:8] != _MAGIC):
            return
        magic, version, header, inc, length = _HEADER.unpack_from(self.view)
        if magic != _MAGIC or version != 1 or header != _HEADER_SIZE:
            raise Stale("that is not a pool of kvferryd")
        if length != self.size or (size is not None and size != length):
            raise Stale(f"the pool has {self.size} bytes, not {length}")
        if incarnation is not None and inc != incarnation:
            raise Stale("the pool is of another incarnation of the daemon")


class Mappings:
    """The cache, by (st_dev, st_ino, writable)."""

    def __init__(self) -> None:
        self._maps: Dict[Tuple[int, int, bool], Mapping] = {}
        self._seen: Tuple[str, float, Optional[Mapping]] = ("", 0.0, None)

    def view_of(self, path: str) -> Mapping:
        """open(path) for reading. Looked up anew after a moment only: for the
        path to name another file, its process has to end and its pid to come
        round again."""
        known, at, mapping = self._seen
        if mapping is None or known != path or time.monotonic() - at > 0.01:
            mapping = self.open(path, False)
            self._seen = path, time.monotonic(), mapping
        return mapping

    def open(self, path: str, write: bool, size: Optional[int] = None,
             incarnation: Optional[bytes] = None) -> Mapping:
        flags = os.O_RDWR if write else os.O_RDONLY
        try:
            st = os.stat(path)
            known = self._maps.get((st.st_dev, st.st_ino, write))
            if known is not None:
                known.check(size, incarnation)
                return known
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as e:
            raise Unsupported(f"cannot open {path}: {e.strerror}") from None
        try:
            st = os.fstat(fd)
            found = self._maps.get((st.st_dev, st.st_ino, write))
            new = found or self._map(fd, st, write)
            new.key = (st.st_dev, st.st_ino, write)
        finally:
            os.close(fd)
        new.check(size, incarnation)
        self._maps[new.key] = new
        return new

    @staticmethod
    def _map(fd: int, st: os.stat_result, write: bool) -> Mapping:
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError:
            seals = 0
        # Without the seal the file could be cut while we read: SIGBUS.
        if (not stat.S_ISREG(st.st_mode) or not seals & _SEAL_SHRINK
                or (write and st.st_size < _HEADER_SIZE)):
            raise Stale("that is not a sealed memory file")
        try:
            return Mapping(fd, st.st_size, write)
        except (OSError, ValueError) as e:
            raise Internal(f"mmap of {st.st_size} bytes: {e}") from None

    def keep(self, mapping: Mapping) -> None:
        """Puts one back after drop()."""
        self._maps[mapping.key] = mapping

    def drop(self) -> None:
        """Forgets all; each is unmapped with the last view into it."""
        self._seen = "", 0.0, None
        self._maps.clear()


def make_memfd(size: int, name: str = "kvferry") -> int:
    """A memfd of `size` bytes, sealed against shrinking, for `register`."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd
