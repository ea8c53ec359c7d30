"""KvferryConnector: kvferry as a connector of vLLM-Omni.

put and get do not raise for what can go wrong in operation: put answers
(False, 0, None), get None; the reason is in the log and counted in health().
After close() they raise RuntimeError. get does not wait for a key (it is called
in a loop over all requests), only once for each sender for the connection to
it; get_with_deadline waits at the daemon.
"""
from __future__ import annotations

import logging
import os
import threading
import time
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple

import msgpack

from . import omni_data
from .buffers import Payload
from .client import Client
from .errors import (Cancelled, KvferryError, NotFound, PeerUnreachable,
                     Timeout, TransferTimeout)

try:
    from vllm_omni.distributed.omni_connectors.connectors.base import (
        OmniConnectorBase as _Base)
except ImportError:
    _Base = object

log = logging.getLogger("kvferry.omni")
Endpoint = Tuple[str, int]
_SEPARATORS = "@:_/"
_ROLES = ("sender", "receiver", "dual")
_MEET = 0.1  # seconds that the first get from a sender has for the connection


class ReceivedBuffer(Payload):
    """What get returns for raw data: `.tensor`, `.as_tensor(dtype, shape)`,
    `.to_bytes()`, `.numpy()`, and a release() that never raises.

    Arrays and tensors made from it stay right after release: the memory goes
    back when the last of them is gone.
    """

    def release(self) -> None:
        self.discard()


def _number(config: Mapping[str, Any], default: Any, *names: str) -> Any:
    """The first of `names` that is set, as an int."""
    for name in names:
        value = config.get(name)
        if value is not None and str(value).lstrip("-").isdigit():
            return int(value)
    return default


def _endpoint(metadata: Any, key: str) -> Optional[Endpoint]:
    """The sender that a put's metadata names, whole or partial; None for
    anything else."""
    if not isinstance(metadata, Mapping):
        return None
    if "source_host" not in metadata and \
            isinstance(metadata.get(key), Mapping):
        metadata = metadata[key]
    host, port = metadata.get("source_host"), metadata.get("source_port")
    if isinstance(host, str) and host and str(port).isdigit() and \
            0 < int(port) < 65536:
        return host, int(port)
    return None


def _connected(client: Client, source: Any) -> bool:
    """Whether the daemon has a session with the sender at that address."""
    return any((p["host"], p["port"]) == source and p["state"] == "up"
               for p in client.stats()["peers"]["list"] if not p["guest"])


class KvferryConnector(_Base):  # type: ignore[misc]
    """A connector on the kvferryd of this worker.

    `config`, all optional: role (sender, receiver, dual), engine_endpoint or
    cluster, stage_id, rank, replica (which daemon); sender_host and
    sender_zmq_port (whom get asks; else metadata, update_sender_info, the
    daemon's edges); host and zmq_port (for get_connection_info),
    buffer_ttl_seconds, get_timeout_seconds, connect_timeout_seconds, checksum.
    Other keys are kept in `config` and ignored. ConnectionError when no daemon
    answers.
    """

    supports_raw_data = True

    def __init__(self, config: Optional[Dict[str, Any]] = None) -> None:
        self.config: Dict[str, Any] = dict(config or {})
        c = self.config
        self.role = str(c.get("role") or "dual").lower()
        if self.role not in _ROLES:
            raise ValueError(f"role {self.role!r}: one of {_ROLES}")
        self.rank = _number(c, 0, "rank", "tp_rank", "local_rank")
        self.replica = _number(c, 0, "replica", "replica_id")
        self._ttl = c.get("buffer_ttl_seconds")
        self._timeout = float(c.get("get_timeout_seconds") or 30.0)
        self._checksum = bool(c.get("checksum"))
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(
            ("puts", "gets", "bytes_transferred", "errors", "timeouts"), 0)
        self._keys: Dict[str, Tuple[str, str, str]] = {}
        self._pending: Dict[str, List[Any]] = {}
        self._senders: Dict[int, Endpoint] = {}
        self._met: Set[Any] = set()  # sources for which no get waits any more
        self._sender = _endpoint(
            {"source_host": c.get("sender_host"),
             "source_port": c.get("sender_zmq_port")}, "")
        self._closed = False
        stage = _number(c, 0, "stage_id", "stage")
        self._client = Client(
            c.get("engine_endpoint"), cluster=str(c.get("cluster")
                                                  or "default"),
            stage=stage, rank=self.rank, replica=self.replica,
            name=f"omni-{self.role}",
            connect_timeout=float(c.get("connect_timeout_seconds") or 5.0))
        # From here on a daemon that is away must not hold up get's caller.
        self._client._engine.connect_timeout = 0.008
        info = self._client.info
        if _number(c, None, "stage_id", "stage") not in (None, info["stage"]):
            self._client.close()
            raise ValueError(f"stage_id {stage}, but the daemon at "
                             f"{self._client._engine.endpoint} serves stage "
                             f"{info['stage']}")
        self.stage_id: int = info["stage"]
        self.rank, self.replica = info["rank"], info["replica"]
        self._address: Optional[Endpoint] = None
        log.info("[KVF CONNECTOR] role=%s worker=%d.%d.%d endpoint=%s",
                 self.role, self.stage_id, self.rank, self.replica,
                 self._client._engine.endpoint)
        self._begin(self._sender)

    # ---- helpers -----------------------------------------------------------

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, n in more.items():
                self._counts[name] += n

    def _open(self) -> Client:
        if self._closed:
            raise RuntimeError("the KvferryConnector is closed")
        return self._client

    @staticmethod
    def _key(key: str, from_stage: Any, to_stage: Any) -> str:
        return f"{key}:{from_stage}_{to_stage}"

    def _source(self, metadata: Any, key: str, from_stage: Any) -> Any:
        found = _endpoint(metadata, key)
        if found is None:
            with self._lock:
                found = self._sender
        if found is not None:
            return found
        stage = str(from_stage)
        return int(stage) if stage.isdigit() else None

    def _begin(self, sender: Optional[Endpoint]) -> None:
        """Has the daemon connect to a sender, before the first get needs it;
        does not wait for it."""
        if sender is None or self.role == "sender":
            return
        try:
            self._client.start_get("kvf-meet", sender, timeout=0)
        except KvferryError:
            pass  # closed by now: get says so

    # ---- put ---------------------------------------------------------------

    def put(self, from_stage: Any, to_stage: Any, put_key: str, data: Any
            ) -> Tuple[bool, int, Optional[Dict[str, Any]]]:
        """Publishes `data`; on success it may be changed or freed, and a get
        that starts now can succeed. A second put of a key replaces the first.
        The metadata can be sent as JSON or MessagePack."""
        client = self._open()
        key = self._key(put_key, from_stage, to_stage)
        began = time.perf_counter()
        try:
            if self.role == "receiver":
                raise ValueError("the role of this connector is receiver")
            raw = omni_data.is_raw(data)
            content = "raw"
            if not raw:
                content, data = omni_data.dumps(data)
            ttl = None if self._ttl is None else float(self._ttl)
            r = client.put(key, data, ttl=ttl, checksum=self._checksum,
                           meta=msgpack.packb({"content": content}))
        except Exception as error:
            if self._closed:
                raise RuntimeError("the KvferryConnector is closed") from None
            self._count(errors=1)
            log.warning("[KVF PUT] key=%s failed: %s", key, error)
            return False, 0, None
        metadata = dict(r.metadata, is_fast_path=raw,
                        incarnation=r.metadata["incarnation"].hex())
        with self._lock:
            self._keys.pop(key, None)
            self._keys[key] = (put_key, str(from_stage), str(to_stage))
            while len(self._keys) > 65536:  # consumed long ago
                del self._keys[next(iter(self._keys))]
            self._address = (metadata["source_host"], metadata["source_port"])
        self._count(puts=1, bytes_transferred=r.size)
        log.debug("[KVF PUT] key=%s size=%d ms=%.3f", key, r.size,
                  (time.perf_counter() - began) * 1000)
        return True, r.size, metadata

    # ---- get ---------------------------------------------------------------

    def get(self, from_stage: Any, to_stage: Any, get_key: str,
            metadata: Any = None) -> Optional[Tuple[Any, int]]:
        """(data, size), or None at once when it is not there. Raw data comes
        as a ReceivedBuffer. A get that succeeds retires the key at the sender,
        one that fails leaves it. The first get from a sender to which this
        daemon is not connected yet waits up to 0.1 s for that."""
        return self._get(from_stage, to_stage, get_key, metadata, 0)

    def get_with_deadline(self, from_stage: Any, to_stage: Any, get_key: str,
                          metadata: Any = None, *,
                          deadline: Optional[float] = None,
                          timeout: Optional[float] = None
                          ) -> Optional[Tuple[Any, int]]:
        """As get, but waits at the daemon: until `deadline` of
        time.monotonic(), or `timeout` seconds, or get_timeout_seconds (30) of
        the configuration."""
        if deadline is not None:
            timeout = deadline - time.monotonic()
        return self._get(from_stage, to_stage, get_key, metadata,
                         self._timeout if timeout is None else timeout)

    def abandon_get(self, get_key: str) -> bool:
        """Ends waiting gets of that key in other threads: they return None.
        True if there was one."""
        with self._lock:
            pending = [p for key, waiting in self._pending.items()
                       if key.rpartition(":")[0] == get_key for p in waiting]
        for p in pending:
            p.cancel()
        return bool(pending)

    def reap_consumed(self) -> None:
        """Nothing to do: the daemon frees what was read."""

    def _get(self, from_stage: Any, to_stage: Any, get_key: str,
             metadata: Any, timeout: float) -> Optional[Tuple[Any, int]]:
        client = self._open()
        key = self._key(get_key, from_stage, to_stage)
        began = time.perf_counter()
        try:
            if self.role == "sender":
                raise ValueError("the role of this connector is sender")
            source = self._source(metadata, get_key, from_stage)
            payload = self._fetch(client, key, source, timeout)
            result = self._decode(payload)
        except Exception as error:
            if self._closed:
                raise RuntimeError("the KvferryConnector is closed") from None
            self._failed(key, error, time.perf_counter() - began)
            return None
        ms = (time.perf_counter() - began) * 1000
        self._count(gets=1, bytes_transferred=result[1])
        log.info("[KVF GET] key=%s size=%d transport=%s mode=%s wait_us=%d "
                 "transfer_us=%d total_ms=%.3f MBps=%.1f", key, result[1],
                 payload.transport, payload.mode, payload.timing.wait_us,
                 payload.timing.transfer_us, ms, result[1] / ms / 1000)
        return result

    def _fetch(self, client: Client, key: str, source: Any, timeout: float
               ) -> Payload:
        if timeout <= 0:
            return self._fetch_now(client, key, source)
        pending = client.start_get(key, source, timeout=timeout)
        with self._lock:
            self._pending.setdefault(key, []).append(pending)
        try:
            return pending.result()
        finally:
            with self._lock:
                self._pending[key].remove(pending)
                if not self._pending[key]:
                    del self._pending[key]

    def _fetch_now(self, client: Client, key: str, source: Any) -> Payload:
        """Without waiting for the key. But a daemon that has never met the
        sender says NOT_FOUND, too: then, once for each sender, the get waits
        for the two to meet."""
        try:
            payload = client.get(key, source, timeout=0)
        except NotFound:
            with self._lock:
                met = source in self._met
                self._met.add(source)
            if met or _connected(client, source):
                raise
            try:
                return client.get(key, source, timeout=_MEET)
            except Timeout as late:  # they have met: the key is not there
                raise NotFound(late.message) from None
            except PeerUnreachable as away:
                log.info("[KVF CONNECTOR] sender=%s is not there yet: %s",
                         source, away)
                raise NotFound(away.message) from None
        with self._lock:
            self._met.add(source)
        return payload

    @staticmethod
    def _decode(payload: Payload) -> Tuple[Any, int]:
        meta = msgpack.unpackb(payload.meta) if payload.meta else {}
        content = meta.get("content", "raw") if isinstance(meta, dict) \
            else "raw"
        if content == "raw":
            payload.__class__ = ReceivedBuffer
            return payload, payload.size
        with payload:
            return omni_data.loads(payload.to_bytes(), content), payload.size

    def _failed(self, key: str, error: Exception, seconds: float) -> None:
        if isinstance(error, NotFound):
            return  # not yet: the normal case
        late = isinstance(error, (Timeout, TransferTimeout))
        given_up = isinstance(error, Cancelled)
        self._count(timeouts=int(late), errors=int(not late and not given_up))
        log.warning("[KVF GET] key=%s failed after_ms=%.1f: %s", key,
                    seconds * 1000, error)

    # ---- the rest ----------------------------------------------------------

    def update_sender_info(self, sender_host: str, sender_zmq_port: int,
                           sender_rank: Optional[int] = None) -> None:
        """Whom get asks when its metadata names nobody. With sender_rank it
        is for this connector only if that is the rank it reads from: its own,
        or the only one that was told."""
        where = _endpoint({"source_host": sender_host,
                           "source_port": sender_zmq_port}, "")
        if where is None:
            raise ValueError(f"not an address: {sender_host}:"
                             f"{sender_zmq_port}")
        with self._lock:
            if sender_rank is None:
                self._sender = where
            else:
                self._senders[int(sender_rank)] = where
                self._sender = self._senders.get(
                    self.rank, next(iter(self._senders.values())))
            sender = self._sender
        self._begin(sender)

    def get_connection_info(self) -> Dict[str, Any]:
        """Where the daemon of this worker answers others: host, zmq_port
        (as a get's source takes it), role, stage_id, rank, replica."""
        self._open()
        host, port = self._address or self._learn()
        return {"host": host, "zmq_port": port, "role": self.role,
                "stage_id": self.stage_id, "rank": self.rank,
                "replica": self.replica,
                "can_put": self.role != "receiver"}

    def _learn(self) -> Tuple[Optional[str], Optional[int]]:
        """A put's metadata has the address; without one yet, that of a key
        that nobody asks for. When no daemon answers, what the configuration
        says."""
        name = f"kvf-address-{os.getpid()}-{id(self)}"
        try:
            m = self._client.put(f"{name}:", b"x", ttl=1).metadata
            self._client.cleanup(name)
            self._address = (m["source_host"], m["source_port"])
            return self._address
        except KvferryError:
            base = _number(self.config, None, "zmq_port")
            if base is not None:
                base += (100 + 1024 * self.replica + 16 * self.rank
                         + self.stage_id)
            return self.config.get("host"), base

    def cleanup(self, request_id: str, from_stage: Any = None,
                to_stage: Any = None) -> bool:
        """Takes what this connector put for a request: the key itself, and
        keys that begin or end with it at one of `@ : _ /`. True if
        anything was taken."""
        client = self._open()
        count = 0

        def mine(put_key: str, a: str, b: str) -> bool:
            fits = put_key == request_id or any(
                put_key.startswith(request_id + s)
                or put_key.endswith(s + request_id) for s in _SEPARATORS)
            return fits and from_stage in (None, a) and to_stage in (None, b)
        from_stage = None if from_stage is None else str(from_stage)
        to_stage = None if to_stage is None else str(to_stage)
        with self._lock:
            names = {k for k, v in self._keys.items() if mine(*v)}
            for k in names:
                del self._keys[k]
        try:
            if from_stage is None and to_stage is None:
                count += client.cleanup(request_id)
            for k in names:
                # The daemon takes `<request>:*`; the last part is ours.
                request, _, edge = k.rpartition(":")
                a, _, b = edge.partition("_")
                if a.isdigit() and b.isdigit():
                    count += client.cleanup(request, int(a), int(b))
                else:
                    count += client.cleanup(request)
        except KvferryError as error:
            self._count(errors=1)
            log.warning("[KVF CLEANUP] request=%s failed: %s", request_id,
                        error)
        return count > 0

    def health(self) -> Dict[str, Any]:
        """`status` (healthy, degraded, unhealthy, closed), `reasons`, and
        puts, gets, bytes_transferred, errors, timeouts of this connector."""
        with self._lock:
            out: Dict[str, Any] = dict(self._counts)
        out.update(status="closed", reasons=[], role=self.role,
                   stage_id=self.stage_id)
        if not self._closed:
            try:
                h = self._client.health()
                out.update(status=h["health"], reasons=h["reasons"])
            except KvferryError as error:
                out.update(status="unhealthy", reasons=[str(error)])
        return out

    def close(self) -> None:
        """Ends the session; what was put stays until its TTL. Idempotent."""
        self._closed = True
        client = getattr(self, "_client", None)  # __init__ may have failed
        if client is not None:
            client.close()

    def __enter__(self) -> "KvferryConnector":
        return self

    def __exit__(self, *exc: Any) -> None:
        self.close()

    def __del__(self) -> None:
        """The client ends by itself; a base's close() here could block."""
