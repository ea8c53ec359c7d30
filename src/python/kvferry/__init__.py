"""kvferry: move KV caches between stage workers through their kvferryd.

>>> client = Client(endpoint)
>>> with client.alloc(8) as buffer:
...     buffer.numpy("float32")[:] = [1, 2]
...     _ = client.put("kv", buffer)
>>> with client.get("kv", timeout=5) as payload:
...     print(payload.numpy("float32"))
[1. 2.]
>>> client.close()
"""
from .aio import AsyncClient
from .blocks import Blocks, Pulled
from .buffers import Buffer, Payload, Region, Segment, Timing
from .client import Client, PendingGet, default_endpoint
from .errors import (BY_STATUS, Busy, Cancelled, ClientClosed, ConnectionLost,
                     Consumed, Corrupt, Denied, Exists, Expired, Failed,
                     Internal, Invalid, KvferryError, Mismatch, NoSpace,
                     NotFound, PeerUnreachable, ShuttingDown, Stale, Timeout,
                     TooLarge, TransferTimeout, Transport, Unsupported)
from .ops import Get, PutResult, Worker, key_for
from .windows import Moved, Window

__version__ = "0.1.0"
__all__ = [
    "AsyncClient", "BY_STATUS", "Blocks", "Buffer", "Busy", "Cancelled",
    "Client", "ClientClosed", "ConnectionLost", "Consumed", "Corrupt",
    "Denied", "Exists", "Expired", "Failed", "Get", "Internal", "Invalid",
    "KvferryError", "Mismatch", "Moved", "NoSpace", "NotFound", "Payload",
    "PeerUnreachable", "PendingGet", "Pulled", "PutResult", "Region",
    "Segment", "ShuttingDown", "Stale", "Timeout", "Timing", "TooLarge",
    "TransferTimeout", "Transport", "Unsupported", "Window", "Worker",
    "default_endpoint", "key_for",
]
