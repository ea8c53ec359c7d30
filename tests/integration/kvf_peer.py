"""Fakes of the daemon-to-daemon protocol (docs/PROTOCOL-PEER.md): a getter and
an owner on raw ZMQ that say whatever a test tells them to."""
import collections
import fcntl
import os
import socket
import struct
import subprocess
import threading
import time

import msgpack
import zmq

from kvf_base import HEADER, WAIT

HELLO, WELCOME, REFUSE, PING, PONG, ASK, UNASK, GRANT, DENY, DONE, ABORT, \
    ENDED, REVOKED, UNMAPPED, BYE = range(1, 16)
WINDOW_ASK, ROOM_ASK, COMMIT, NOTIFY, APPLIED, RETIRED, RETIRED_SEEN = \
    range(24, 31)
TOKEN = b"t" * 16
SECRET = b"s" * 32
ZERO = bytes(16)
STALE, BUSY = 11, 14  # include/kvferry/status.h


def start_of(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        text = f.read()
    return int(text[text.rindex(")") + 2:].split()[19])


def sleeper(**kw):
    """A process that does nothing, without capabilities."""
    drop = [] if os.geteuid() else ["setpriv", "--bounding-set=-all",
                                    "--inh-caps=-all"]
    p = subprocess.Popen(drop + ["sleep", "1000"], **kw)
    end = time.monotonic() + 10
    while time.monotonic() < end:  # setpriv still has its capabilities
        with open(f"/proc/{p.pid}/comm", encoding="utf-8") as f:
            if f.read().strip() == "sleep":
                return p
        time.sleep(0.001)
    p.kill()
    raise AssertionError("setpriv did not become sleep")


class Pool:
    """A pool as a daemon makes it: a sealed memfd with a header, held by a
    process that a daemon without capabilities may look into."""

    def __init__(self, incarnation, size=1 << 20, fill=b"\0"):
        self.size = size
        self.fd = os.memfd_create("fake", os.MFD_ALLOW_SEALING
                                  | os.MFD_CLOEXEC)
        os.truncate(self.fd, size)
        os.pwrite(self.fd, struct.pack("<8sII16sQQQ", b"KVFPOOL1", 1, HEADER,
                                       incarnation, size, 4096, os.getpid()),
                  0)
        if fill != b"\0":
            os.pwrite(self.fd, fill * (size - HEADER), HEADER)
        fcntl.fcntl(self.fd, 1033, 1 | 2 | 4)  # F_ADD_SEALS
        self.proc = sleeper(pass_fds=[self.fd])

    def map(self):
        return {"path": f"/proc/{self.proc.pid}/fd/{self.fd}",
                "size": self.size, "pid": self.proc.pid,
                "start": start_of(self.proc.pid)}

    def close(self):
        self.proc.kill()
        self.proc.wait()
        os.close(self.fd)


class Side:
    """What both fakes share: the envelope."""

    def __init__(self, worker, incarnation=None, cluster="test"):
        self.worker, self.cluster = worker, cluster
        self.incarnation = incarnation or os.urandom(16)
        self.pool = None

    def pack(self, type_, to, **body):
        return msgpack.packb([1, type_, self.cluster, *self.worker,
                              self.incarnation, to, body], use_bin_type=True)

    def pool_map(self):
        return self.pool.map() if self.pool else {
            "path": "", "size": 0, "pid": 0, "start": 0}


class Getter(Side):
    """Dials an owner."""

    def __init__(self, daemon, worker=(1, 0, 0), shm=False, **kw):
        super().__init__(worker, **kw)
        self.to = daemon.incarnation
        self.at = f"tcp://127.0.0.1:{daemon.peer_port}"
        self.sock = None
        self.asks = 0
        if shm:
            self.pool = Pool(self.incarnation)
        self.connect()

    def connect(self, rcvhwm=0):
        if self.sock:
            self.sock.close(0)
        self.sock = zmq.Context.instance().socket(zmq.DEALER)
        self.sock.linger = 0
        self.sock.rcvhwm = rcvhwm
        self.sock.connect(self.at)

    def send(self, type_, **body):
        self.sock.send(self.pack(type_, self.to, **body))

    def recv(self, *types, seconds=WAIT):
        """The next message of one of these types: (type, body, payload)."""
        end = time.monotonic() + seconds
        while True:
            left = max(0, end - time.monotonic())
            assert self.sock.poll(int(left * 1000)), f"no message {types}"
            frames = self.sock.recv_multipart()
            m = msgpack.unpackb(frames[0], raw=False, strict_map_key=False)
            if not types or m[1] in types:
                return m[1], m[8], frames[1] if len(frames) > 1 else None

    def hello(self, live=(), gone=(), **kw):
        self.send(HELLO, pool=self.pool_map(), peer_timeout_ms=2000,
                  live=list(live), gone=list(gone), **kw)
        type_, body, _ = self.recv(WELCOME, REFUSE)
        assert type_ == WELCOME, body
        return body

    def ask(self, key, mode="copy", wait=False, eager_max=0, view_pid=0, **kw):
        self.asks += 1
        self.send(ASK, ask=self.asks, key=key, wait=wait, wait_ms=0,
                  shm=self.pool is not None, mode=mode, eager_max=eager_max,
                  view_pid=view_pid,
                  view_start=start_of(view_pid) if view_pid else 0, **kw)
        return self.asks

    def claim(self, key, **kw):
        self.ask(key, **kw)
        type_, body, _ = self.recv(GRANT, DENY)
        assert type_ == GRANT, body
        return body

    def close(self):
        self.sock.close(0)
        if self.pool:
            self.pool.close()


class Owner(Side):
    """Is dialled. `on_ask(owner, body)` answers an ASK, `on_read(tag, offset,
    length)` gives the (status, bytes) of a READ on the bulk port. Runs in a
    thread of its own until closed."""

    def __init__(self, on_ask, on_read=None, worker=(0, 0, 0), shm_size=0,
                 fill=b"\0", **kw):
        super().__init__(worker, **kw)
        self.on_ask, self.on_read = on_ask, on_read
        if shm_size:
            self.pool = Pool(self.incarnation, shm_size, fill)
        self.sock = zmq.Context.instance().socket(zmq.ROUTER)
        self.sock.linger = 0
        self.port = self.sock.bind_to_random_port("tcp://127.0.0.1")
        self.bulk = socket.create_server(("127.0.0.1", 0))
        self.bulk.settimeout(0.05)
        self.seen = []
        self.out = collections.deque()
        self.rid = self.to = None
        self.over = False
        self.claims = 0
        self.threads = [threading.Thread(target=self.run),
                        threading.Thread(target=self.run_bulk)]
        for t in self.threads:
            t.start()

    source = property(lambda self: {"host": "127.0.0.1", "port": self.port})

    def send(self, type_, payload=None, **body):
        """From any thread; the owner's own alone touches the socket."""
        frames = [self.rid, self.pack(type_, self.to, **body)]
        self.out.append(frames + ([payload] if payload is not None else []))
        if threading.current_thread() is self.threads[0]:
            self.flush()

    def flush(self):
        while self.out:
            self.sock.send_multipart(self.out.popleft())

    def grant(self, ask, size, payload=None, generation=1, segs=(), **kw):
        self.claims += 1
        body = {"ask": ask["ask"], "claim": self.claims, "token": TOKEN,
                "generation": generation, "size": size, "meta": b"",
                "eager": payload is not None, "shm": bool(segs),
                "segs": [list(s) for s in segs], "spaces": []}
        body.update(kw)
        self.send(GRANT, payload, **body)
        return body["claim"]

    def run(self):
        while not self.over:
            self.flush()
            if not self.sock.poll(20):
                continue
            rid, data = self.sock.recv_multipart()[:2]
            m = msgpack.unpackb(data, raw=False, strict_map_key=False)
            self.rid, self.to = rid, m[6]
            self.seen.append((m[1], m[8]))
            if m[1] == HELLO:
                self.send(WELCOME, pool=self.pool_map(),
                          shm=self.pool is not None, shm_why="", tcp=True,
                          tcp_host="127.0.0.1",
                          tcp_port=self.bulk.getsockname()[1],
                          secret=SECRET, dead=[])
            elif m[1] == PING:
                self.send(PONG, seq=m[8]["seq"])
            elif m[1] == ASK:
                self.on_ask(self, m[8])
            elif m[1] in (DONE, ABORT):
                self.send(ENDED, claim=m[8]["claim"])

    def run_bulk(self):
        while not self.over:
            try:
                conn = self.bulk.accept()[0]
            except socket.timeout:
                continue
            t = threading.Thread(target=self.run_conn, args=(conn,))
            t.start()
            self.threads.append(t)

    def run_conn(self, conn):
        conn.settimeout(0.05)
        got, need = b"", 40
        with conn:
            while not self.over:
                try:
                    part = conn.recv(65536)
                except socket.timeout:
                    continue
                except OSError:
                    return
                if not part:
                    return
                got += part
                while len(got) >= need:
                    frame, got = got[:need], got[need:]
                    if need == 56:
                        self.answer_read(conn, frame)
                    need = 56

    def answer_read(self, conn, frame):
        tag, claim = struct.unpack_from(">QQ", frame, 8)
        offset, length = struct.unpack_from(">QQ", frame, 40)
        status, data = self.on_read(claim, offset, length)
        try:
            conn.sendall(struct.pack(">2sHIQQ", b"KR", 0, status, tag,
                                     len(data)) + data)
        except OSError:
            pass

    def close(self):
        self.over = True
        for t in self.threads:
            t.join(WAIT)
        self.sock.close(0)
        self.bulk.close()
        if self.pool:
            self.pool.close()
