"""Memory: buffers to fill, payloads that a get brought, regions of one's own.

All are bytes-like (memoryview(b), numpy.frombuffer(b), bytes(b)), one
dimension of unsigned bytes, without a copy.

While an array or memoryview made from a buffer lives, its memory cannot be
given back: release() refuses with BufferError, `with` and garbage collection
give it back as soon as the last of them is gone.
"""
from __future__ import annotations

import mmap
import os
import sys
from typing import (TYPE_CHECKING, Any, Dict, NamedTuple, Optional, Sequence,
                    Tuple, Union)

from ._export import exports, tracked
from .errors import Corrupt, Unsupported
from .shm import make_memfd

if TYPE_CHECKING:
    from .calls import Lease

try:
    import numpy as np
except ImportError:  # optional
    np = None  # type: ignore[assignment]


_NONE: Tuple[memoryview, ...] = ()
_ARRAY: Any = () if np is None else np.ndarray  # for isinstance


class Segment(NamedTuple):
    """A part of a buffer or region: what put and get's `into` take."""
    owner: "Union[Buffer, Region]"
    offset: int
    length: int

    def wire(self) -> Dict[str, int]:
        return {self.owner._kind: self.owner.id, "offset": self.offset,
                "length": self.length}


def _check_range(offset: int, length: int, size: int) -> None:
    if offset < 0 or length <= 0 or offset + length > size:
        raise ValueError(f"{length} bytes from {offset} on are not inside "
                         f"{size}")


@exports
class Memory:
    """What Buffer, Payload and Region have in common."""

    _kind = "buffer"
    _mv: Optional[memoryview]
    size: int

    def _export(self) -> memoryview:
        if self._mv is None:
            raise ValueError(f"this {type(self).__name__} was released")
        return self._mv

    @property
    def view(self) -> memoryview:
        """A memoryview, without a copy; valid until release."""
        return tracked(self._export())

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return self.to_bytes()

    def to_bytes(self) -> bytes:
        """A copy as bytes."""
        return bytes(self._export())

    def numpy(self, dtype: Any = "uint8", shape: Any = None) -> Any:
        """A numpy array over the memory, without a copy; read-only for what a
        get brought."""
        if np is None:
            raise ImportError("numpy is not installed: use .view")
        array = np.frombuffer(self.view, dtype=dtype)
        return array if shape is None else array.reshape(shape)

    @property
    def tensor(self) -> Any:
        """A 1-D uint8 torch tensor over the memory, without a copy. That of a
        get must not be written to."""
        return _tensor(self)

    def as_tensor(self, dtype: Any, shape: Any = None) -> Any:
        """A view as `dtype` and `shape`: a torch tensor for a torch.dtype, a
        numpy array for a numpy one. No copy."""
        if not type(dtype).__module__.startswith("torch"):
            return self.numpy(dtype, shape)
        tensor = _tensor(self).view(dtype)
        return tensor if shape is None else tensor.reshape(shape)


def _tensor(memory: Memory) -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError("torch is not installed: use .numpy() or .view"
                          ) from None
    if np is None:
        return torch.frombuffer(memory.view, dtype=torch.uint8)
    import warnings
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so each time.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(memory.numpy())


class Buffer(Memory):
    """A piece of the daemon's pool that this session fills: from `alloc`.

    put() gives it away: nothing may be written to it after that.
    """

    def __init__(self, view: memoryview, ident: int = 0,
                 lease: "Optional[Lease]" = None) -> None:
        self._mv: Optional[memoryview] = view
        self._pieces: Sequence[memoryview] = (view,)
        self._lease = lease
        self.id = ident
        self.size = view.nbytes

    @property
    def released(self) -> bool:
        """True after release, discard or a put that was OK."""
        return self._mv is None

    def segment(self, offset: int = 0, length: Optional[int] = None
                ) -> Segment:
        """A part of it."""
        if length is None:
            length = self.size - offset
        _check_range(offset, length, self.size)
        self._export()
        return Segment(self, offset, length)

    def release(self) -> None:
        """Gives it back; does nothing the second time. BufferError, and
        nothing happens, while arrays or memoryviews made from it live."""
        some = False
        try:
            for view in self._pieces:
                view.release()
                some = True
        except BufferError:
            if some:  # the rest goes with its last user
                self.discard()
            raise BufferError(
                "an array or memoryview made from this "
                f"{type(self).__name__} is still alive: drop it first, "
                "or call discard()") from None
        self._mv, self._pieces = None, _NONE
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.end()

    def discard(self) -> None:
        """Gives it back as soon as the last array or memoryview made from it
        is gone (at once if there is none)."""
        views, lease = self._pieces, self._lease
        self._mv, self._pieces, self._lease = None, _NONE, None
        if lease is None:
            return
        try:
            for view in views:
                view.release()
        except BufferError:
            return  # the lease watches the memory itself
        # Not by its watch: what a signal's handler raises would be lost there.
        lease.end()

    def _given_away(self) -> None:
        """A put took it: it is the daemon's now."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.drop()
        self._mv, self._pieces = None, _NONE

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.discard()

    def __repr__(self) -> str:
        state = "released" if self.released else f"{self.size} bytes"
        return f"<kvferry.{type(self).__name__} {self.id:#x}: {state}>"


class Timing(NamedTuple):
    """The daemon's times of one get, in microseconds."""
    lookup_us: int
    wait_us: int
    transfer_us: int
    total_us: int


class Payload(Buffer):
    """What a get brought: read-only, until it is released.

    A view counts as read at release. `mode`, `transport`, `attempts`,
    `generation`, `meta`, `timing` and `checksum` (None without one) are those
    of the reply. Memory published in several segments and got as a view has
    several `pieces`; view and the like then refuse, to_bytes joins them.
    """

    def __init__(self, reply: Dict[str, Any], pieces: Sequence[memoryview],
                 lease: "Optional[Lease]" = None,
                 key: str = "") -> None:
        self._pieces = pieces
        self._mv = pieces[0] if pieces else memoryview(b"")
        self._lease = lease
        self.id = reply.get("buffer", 0)
        self.size = reply["size"]
        self.key = key
        self._reply = reply  # most callers ask for none of the rest

    @property
    def generation(self) -> int:
        """That of the put."""
        return self._reply.get("generation", 0)

    @property
    def meta(self) -> bytes:
        """That of the put."""
        return self._reply.get("meta") or b""

    @property
    def mode(self) -> str:
        """How it came: view, copy, into or inline."""
        return self._reply.get("mode", "")

    @property
    def transport(self) -> str:
        """What brought it, in the words of the daemon's log."""
        return self._reply.get("transport", "")

    @property
    def attempts(self) -> int:
        """How often the daemon tried."""
        return self._reply.get("attempts", 0)

    @property
    def checksum(self) -> Optional[int]:
        """XXH3-64, or None when the put asked for none."""
        return self._reply.get("checksum")

    @property
    def timing(self) -> Timing:
        """The daemon's times of this get."""
        timing = self._reply.get("timing") or {}
        return Timing(*(timing.get(f, 0) for f in Timing._fields))

    def _export(self) -> memoryview:
        mv = super()._export()
        if len(self._pieces) > 1:
            raise ValueError(f"the payload has {len(self._pieces)} pieces: "
                             "use pieces or to_bytes()")
        return mv

    @property
    def pieces(self) -> Tuple[memoryview, ...]:
        """Read-only memoryviews that make up the payload, in order."""
        if self._mv is None:
            raise ValueError("this Payload was released")
        return tuple(tracked(p) for p in self._pieces)

    def to_bytes(self) -> bytes:
        """A copy as bytes, of all pieces."""
        if self._mv is None:
            raise ValueError("this Payload was released")
        return b"".join(self._pieces)

    def copy_to(self, dst: Any) -> int:
        """Copies all of it into a writable bytes-like object; the number of
        bytes. ValueError when that is too small."""
        if self._mv is None:
            raise ValueError("this Payload was released")
        out = memoryview(dst).cast("B")
        if out.nbytes < self.size:
            raise ValueError(f"{out.nbytes} bytes do not hold {self.size}")
        at = 0
        for p in self._pieces:
            copy_bytes(out[at:at + p.nbytes], p)
            at += p.nbytes
        return at

    def verify(self) -> None:
        """Checks the bytes against the put's checksum: Corrupt if they
        differ, Unsupported when there is none (or no `xxhash` module)."""
        if self.checksum is None:
            raise Unsupported("the put asked for no checksum")
        try:
            import xxhash
        except ImportError:
            raise Unsupported("the module xxhash is not installed") from None
        h = xxhash.xxh3_64(seed=0)
        for p in self._pieces if self._mv is not None else ():
            h.update(p)
        if h.intdigest() != self.checksum:
            raise Corrupt(f"{self.key}: the checksum does not match")


class Region(Memory):
    """Memory of this process that the daemon may read (put) and write
    (get's `into`): a memfd, mapped here. From `Client.region` or `register`.

    `id` is 0 until it is registered and after `unregister`.
    """

    _kind = "region"

    def __init__(self, size: int, fd: Optional[int] = None) -> None:
        self.fd = make_memfd(size) if fd is None else os.dup(fd)
        self.size = size
        self.id = 0
        self._map = mmap.mmap(self.fd, size)
        self._mv: Optional[memoryview] = memoryview(self._map)

    def segment(self, offset: int = 0, length: Optional[int] = None
                ) -> Segment:
        """A part of it."""
        if length is None:
            length = self.size - offset
        _check_range(offset, length, self.size)
        return Segment(self, offset, length)

    def close(self) -> None:
        """Closes the fd. The mapping goes with the last view of it."""
        self._mv = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0 and not sys.is_finalizing():
            self.close()

    def __repr__(self) -> str:
        return f"<kvferry.Region {self.id:#x}: {self.size} bytes>"


# ---- sources -----------------------------------------------------------------

def copy_bytes(dst: memoryview, src: memoryview) -> None:
    """dst[:] = src; large ones without the interpreter's lock."""
    if np is not None and src.nbytes > 65536:
        np.copyto(np.frombuffer(dst, np.uint8), np.frombuffer(src, np.uint8))
    else:
        dst[:] = src


class Source:
    """Something to be put: its size, its bytes, and how to copy them."""
    __slots__ = ("size", "_array", "_view")

    def __init__(self, data: Any) -> None:
        if not isinstance(data, _ARRAY) and \
                type(data).__module__.partition(".")[0] == "torch":
            data = _host_array(data)
        self._array: Any = None
        if isinstance(data, _ARRAY):
            if data.dtype.hasobject:  # its bytes are addresses
                raise TypeError("an array of Python objects cannot be put")
            self._array, self.size = data, int(data.nbytes)
            return
        view = memoryview(data)
        if not view.c_contiguous:
            view = memoryview(view.tobytes())
        self._view = view.cast("B")
        self.size = self._view.nbytes

    def fill(self, dst: memoryview, at: int = 0) -> None:
        """Copies it to there, from byte `at` on. Without the interpreter's
        lock, unless it is small."""
        array = self._array
        if array is None:
            copy_bytes(dst[at:at + self.size], self._view)
            return
        out = np.frombuffer(dst, array.dtype, array.size, at)
        if array.ndim != 1:
            out = out.reshape(array.shape)
        out[...] = array  # as np.copyto, which is a function in Python

    def to_bytes(self) -> bytes:
        if self._array is not None:
            return bytes(self._array.tobytes())
        return bytes(self._view)


def _host_array(tensor: Any) -> Any:
    import torch
    t = tensor.detach().cpu().contiguous().reshape(-1)
    if np is None:
        return bytes(t.view(torch.uint8).tolist())
    return t.view(torch.uint8).numpy()
