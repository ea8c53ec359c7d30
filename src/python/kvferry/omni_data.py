"""Objects to bytes and back for the vLLM-Omni connector.

Raw memory (bytes-like, arrays, tensors, buffers) goes as it is. Anything else
goes through vLLM-Omni's serializer when it is importable, else through
MessagePack with arrays, tensors and tuples. Never through pickle: what comes
from another machine must not be able to run anything here.

>>> content, data = dumps({"a": (1, b"x")})
>>> loads(data, content)
{'a': (1, b'x')}
"""
from __future__ import annotations

from typing import Any, Tuple

import msgpack

from .buffers import Memory, Segment

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

_ARRAY, _TENSOR, _TUPLE = 1, 2, 3


def omni_serializer() -> Any:
    """vLLM-Omni's serializer, or None."""
    try:
        from vllm_omni.distributed.omni_connectors.utils.serialization \
            import OmniSerializer
    except ImportError:
        return None
    return OmniSerializer


def _is_tensor(data: Any) -> bool:
    return (type(data).__module__.split(".")[0] == "torch"
            and hasattr(data, "detach"))


def is_raw(data: Any) -> bool:
    """True for memory that travels as it is (the fast path)."""
    return (isinstance(data, (bytes, bytearray, memoryview, Memory, Segment))
            or _is_tensor(data)
            or (np is not None and isinstance(data, np.ndarray)
                and not data.dtype.hasobject))


def _array_ext(a: Any) -> bytes:
    if a.dtype.hasobject:
        raise TypeError("arrays of objects cannot be sent")
    head = msgpack.packb([a.dtype.str, list(a.shape)])
    return head + np.ascontiguousarray(a).tobytes()


def _default(o: Any) -> Any:
    if type(o) is tuple:
        return msgpack.ExtType(_TUPLE, _packb(list(o)))
    if _is_tensor(o):
        import torch
        flat = o.detach().cpu().contiguous().reshape(-1)
        head = msgpack.packb([str(o.dtype).split(".")[-1], list(o.shape)])
        return msgpack.ExtType(_TENSOR,
                               head + flat.view(torch.uint8).numpy().tobytes())
    if np is not None and isinstance(o, np.ndarray):
        return msgpack.ExtType(_ARRAY, _array_ext(o))
    if np is not None and isinstance(o, np.generic):
        return o.item()
    if isinstance(o, memoryview):
        return o.tobytes()
    for base in (dict, list, str, bytes, int, float):
        if isinstance(o, base):  # strict_types sends subclasses here
            return base(o)
    raise TypeError(f"{type(o).__module__}.{type(o).__name__} cannot be sent "
                    "without vLLM-Omni's serializer")


def _ext(code: int, data: bytes) -> Any:
    if code == _TUPLE:
        return tuple(_unpackb(data))
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    unpacker.feed(data)
    dtype, shape = unpacker.unpack()
    body = data[unpacker.tell():]
    if code == _ARRAY and np is not None:
        return np.frombuffer(bytearray(body), dtype).reshape(shape)
    if code == _TENSOR:
        import torch
        t = torch.frombuffer(bytearray(body), dtype=torch.uint8) \
            if body else torch.empty(0, dtype=torch.uint8)
        return t.view(getattr(torch, dtype)).reshape(shape)
    raise ValueError(f"unknown extension {code}")


def _packb(o: Any) -> bytes:
    return msgpack.packb(o, default=_default, strict_types=True,
                         use_bin_type=True)


def _unpackb(data: Any) -> Any:
    return msgpack.unpackb(data, ext_hook=_ext, strict_map_key=False,
                           raw=False)


def dumps(data: Any) -> Tuple[str, bytes]:
    """(content type, bytes); TypeError for what cannot be sent."""
    serializer = omni_serializer()
    if serializer is not None:
        return "omni", bytes(serializer.serialize(data))
    return "msgpack", _packb(data)


def loads(data: Any, content: str) -> Any:
    """The object; ValueError for a content type that is not known here."""
    if content == "msgpack":
        return _unpackb(data)
    serializer = omni_serializer()
    if content != "omni" or serializer is None:
        raise ValueError(f"cannot read content {content!r} here")
    return serializer.deserialize(bytes(data))
