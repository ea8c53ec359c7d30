"""Client speaks the engine protocol on one socket; Engine is a Client in a
process of its own."""
import collections
import itertools
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time

import msgpack
import zmq

from kvf_base import HERE, SLOW, STATUSES, WAIT, NoReply


class Reply(dict):
    """A reply's map, with the raw frame that came with it (or None)."""
    payload = None

    @property
    def status(self):
        return self.get("status")


def pack(m):
    return msgpack.packb(m, use_bin_type=True)


class Client:
    """One socket of an engine. Keywords that Python reserves take a trailing
    underscore (from_=...)."""
    ctx = None

    def __init__(self, endpoint, kind=zmq.DEALER, delimiter=None,
                 routing_id=None, timeout=None):
        if Client.ctx is None or Client.ctx.closed:
            Client.ctx = zmq.Context()
        self.sock = Client.ctx.socket(kind)
        self.sock.linger = 0
        self.sock.setsockopt(zmq.SNDHWM, 0)
        self.sock.setsockopt(zmq.RCVHWM, 0)
        if routing_id is not None:
            self.sock.setsockopt(zmq.IDENTITY, routing_id)
        self.kind = kind
        self.delimiter = (delimiter if delimiter is not None else False)
        self.timeout = timeout or WAIT
        self.sock.connect(endpoint)
        self.ids = itertools.count(1)
        self.replies = collections.OrderedDict()
        self.events = []
        self.maps = {}
        self.info = None

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self, bye=True):
        """A session outlives its sockets, so it is ended here."""
        self.maps = {}
        if self.sock.closed:
            return
        if bye and self.info is not None:
            try:
                self.request("bye", timeout=2 * SLOW)
            except (NoReply, zmq.ZMQError):
                pass
        self.sock.close(0)

    # -- envelope ---------------------------------------------------------
    def send_raw(self, *frames):
        if self.delimiter and self.kind != zmq.REQ:
            frames = (b"",) + frames
        self.sock.send_multipart(frames)

    def send_map(self, m, payload=None):
        frames = [pack(m)]
        if payload is not None:
            frames.append(payload)
        self.send_raw(*frames)

    def send(self, op, payload=None, **fields):
        """Sends a request and returns its id."""
        m = {"op": op, "id": next(self.ids)}
        for k, v in fields.items():
            m[k.rstrip("_")] = v
        self.send_map(m, payload)
        return m["id"]

    def recv_raw(self, timeout=None):
        t = self.timeout if timeout is None else timeout
        if not self.sock.poll(int(t * 1000)):
            raise NoReply(f"nothing within {t} s")
        return self.sock.recv_multipart()

    def recv_any(self, timeout=None):
        frames = self.recv_raw(timeout)
        if self.delimiter and self.kind != zmq.REQ:
            assert frames[0] == b"", "the delimiter was not answered"
            frames = frames[1:]
        assert 1 <= len(frames) <= 2, f"{len(frames)} frames"
        m = Reply(msgpack.unpackb(frames[0], raw=False,
                                  strict_map_key=False))
        m.payload = frames[1] if len(frames) == 2 else None
        return m

    def recv(self, id_=None, timeout=None):
        """The reply to `id_`, or the next one; keeps others and events."""
        if id_ is None and self.replies:
            return self.replies.popitem(last=False)[1].pop(0)
        end = time.monotonic() + (self.timeout if timeout is None
                                  else timeout)
        while True:
            if id_ is not None and id_ in self.replies:
                got = self.replies[id_].pop(0)
                if not self.replies[id_]:
                    del self.replies[id_]
                return got
            m = self.recv_any(max(0.0, end - time.monotonic()))
            if "event" in m:
                assert "id" not in m, m
                self.events.append(m)
                continue
            check_reply(m)
            if id_ is None:
                return m
            self.replies.setdefault(m.get("id"), []).append(m)

    def event(self, timeout=None, **want):
        """The next event that has these values."""
        end = time.monotonic() + (self.timeout if timeout is None
                                  else timeout)
        while True:
            for i, e in enumerate(self.events):
                if all(e.get(k) == v for k, v in want.items()):
                    return self.events.pop(i)
            m = self.recv_any(max(0.0, end - time.monotonic()))
            if "event" in m:
                self.events.append(m)
            else:
                check_reply(m)
                self.replies.setdefault(m.get("id"), []).append(m)

    def quiet(self, seconds=0.15):
        """Nothing comes for a while."""
        assert not self.sock.poll(int(seconds * 1000)), self.recv_any()

    def request(self, op, payload=None, timeout=None, **fields):
        return self.recv(self.send(op, payload, **fields), timeout)

    def ok(self, op, payload=None, timeout=None, **fields):
        r = self.request(op, payload, timeout, **fields)
        assert r.status == "OK", f"{op}: {dict(r)}"
        return r

    def want(self, status, op, payload=None, timeout=None, **fields):
        r = self.request(op, payload, timeout, **fields)
        assert r.status == status, f"{op}: wanted {status}: {dict(r)}"
        return r

    # -- sessions and memory ----------------------------------------------
    def hello(self, **fields):
        self.info = self.ok("hello", version=1, **fields)
        self.session = self.info["session"]
        return self.info

    def map(self, path, write=False):
        """A mapping of the file at `path`; one per inode."""
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY)
                     | os.O_CLOEXEC)
        try:
            st = os.fstat(fd)
            at = (st.st_dev, st.st_ino, write)
            if at not in self.maps:
                prot = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
                self.maps[at] = mmap.mmap(fd, st.st_size, mmap.MAP_SHARED,
                                          prot)
            return self.maps[at]
        finally:
            os.close(fd)

    def pool(self):
        return self.map(self.info["pool"]["path"], write=True)

    def alloc(self, size):
        return self.ok("alloc", size=size)

    def fill(self, buf, data, at=0):
        self.pool()[buf["offset"] + at:buf["offset"] + at + len(data)] = data

    def filled(self, data):
        """A buffer of this pool with these bytes."""
        buf = self.alloc(len(data))
        self.fill(buf, data)
        return buf

    def peek(self, buf, size=None, at=0):
        size = buf["size"] if size is None else size
        return self.pool()[buf["offset"] + at:buf["offset"] + at + size]

    def put(self, key, data, **fields):
        """Publishes bytes out of the pool."""
        buf = self.filled(data)
        r = self.ok("put", key=key, segments=[{"buffer": buf["buffer"]}],
                    **fields)
        assert r["size"] == len(data)
        return r

    def bytes_of(self, reply):
        """The bytes that a get's reply points to (not for `into`)."""
        if reply.payload is not None:
            return reply.payload
        out = b""
        for s in reply["segments"]:
            m = self.map(s["path"]) if s.get("path") else self.pool()
            out += m[s["offset"]:s["offset"] + s["length"]]
        return out

    def fetch(self, key, **fields):
        """get, read, release; returns the bytes."""
        r = self.ok("get", key=key, **fields)
        data = self.bytes_of(r)
        assert len(data) == r["size"], dict(r)
        if r.get("buffer"):
            self.ok("release", buffer=r["buffer"])
        return data


def check_reply(m):
    assert "id" in m, f"a reply without id: {dict(m)}"
    assert m.get("status") in STATUSES, dict(m)
    if m["status"] != "OK":
        assert isinstance(m.get("message"), str) and m["message"], dict(m)


def header(m):
    """The pool's first page: magic, version, header size, incarnation,
    size."""
    return struct.unpack_from("<8sII16sQ", m, 0)


class Engine:
    """A Client in another process: kill it, stop it, let it exit."""

    def __init__(self, endpoint, hello=True, prefix=(), routing_id=None):
        self.proc = subprocess.Popen(
            list(prefix) + [sys.executable, os.path.join(HERE, "engine.py"),
                            endpoint] + ([routing_id] if routing_id else []),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.proc.pid
        if hello:
            self.ok("hello", version=1)

    def do(self, what, **args):
        """One command of engine.py; returns its answer."""
        self.proc.stdin.write(json.dumps(dict(args, do=what)) + "\n")
        self.proc.stdin.flush()
        line = self.proc.stdout.readline()
        if not line:
            raise NoReply("the engine process ended")
        got = json.loads(line)
        assert "error" not in got, got["error"]
        return got

    def request(self, op, **fields):
        return self.do("request", op=op, fields=fields)

    def ok(self, op, **fields):
        r = self.request(op, **fields)
        assert r["status"] == "OK", r
        return r

    def send(self, op, **fields):
        return self.do("send", op=op, fields=fields)

    def put(self, key, size, seed=1, **fields):
        return self.do("put", key=key, size=size, seed=seed, fields=fields)

    def kill(self):
        self.proc.kill()
        self.proc.wait(WAIT)

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)

    def cont(self):
        os.kill(self.pid, signal.SIGCONT)

    def close(self):
        if self.proc.poll() is None:
            self.kill()
        self.proc.stdin.close()
        self.proc.stdout.close()
