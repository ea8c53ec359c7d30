"""The server process of a stage: its rank processes, the blocks of their KV
caches, and HTTP.

All ranks of a stage hold the same blocks of the same requests, so this process
deals out the block ids. It is ended (and started again by `run`) when one of its
ranks ends.
"""
import json
import logging
import os
import signal
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import process
import rank as rank_module
from channel import Channel, Sum, star

HTTP_STATUS = {"TIMEOUT": 504, "TRANSFER_TIMEOUT": 504, "NO_SPACE": 503,
               "BUSY": 503, "SHUTTING_DOWN": 503, "INVALID": 400,
               "TOO_LARGE": 413}


BODY_MAX = 16 << 20  # bytes of a request


class StageError(Exception):
    """What went wrong, in kvferry's words, and where."""

    def __init__(self, status, message, where):
        super().__init__(f"{where}: {status}: {message}")
        self.status, self.where = status, where
        self.http = HTTP_STATUS.get(status, 502)

    def body(self):
        return {"error": {"type": self.status, "message": str(self),
                          "where": self.where}}


def to_json(x):
    """Maps whose bytes become {"hex": ...}; from_json is the reverse."""
    if isinstance(x, bytes):
        return {"hex": x.hex()}
    return {k: to_json(v) for k, v in x.items()} if isinstance(x, dict) else x


def from_json(x):
    if isinstance(x, dict):
        return bytes.fromhex(x["hex"]) if set(x) == {"hex"} else \
            {k: from_json(v) for k, v in x.items()}
    return x


class Ranks:
    """The rank processes. call() asks all of them."""

    def __init__(self, name, options, config, weights, stage):
        self.name = name
        n = options["prefill_tp" if stage == 0 else "decode_tp"]
        sums = star(n)
        self.channels, self.pids = [], []
        ours = []
        for r in range(n):
            mine, theirs = socket.socketpair()
            pid = process.fork(f"{name}-r{r}")
            if pid == 0:
                for s in ours + [mine] + [
                        x for i, xs in enumerate(sums) if i != r for x in xs]:
                    s.close()
                rank_module.run(options, config, weights, stage, r,
                                Channel(theirs), Sum(r, sums[r]))
            theirs.close()
            ours.append(mine)
            self.pids.append(pid)
            self.channels.append(Channel(mine))
        for s in (x for xs in sums for x in xs):
            s.close()
        self._lock, self._order = threading.Lock(), threading.Lock()
        self._next = 0
        self._waiting = {}
        self.on_retired = lambda rank, rid: None
        for r, c in enumerate(self.channels):
            if "ready" not in c.recv():
                raise EOFError(f"rank {r} did not start")
        for r in range(n):
            threading.Thread(target=self._receive, args=(r,),
                             daemon=True).start()

    def _receive(self, r):
        try:
            while True:
                m = self.channels[r].recv()
                if "retired" in m:
                    self.on_retired(r, m["retired"])
                    continue
                with self._lock:
                    if m["id"] not in self._waiting:
                        continue
                    answers, event, abort = self._waiting[m["id"]]
                    answers[r] = m
                    if all(answers):
                        event.set()
                if "error" in m and abort is not None:
                    for c in self.channels:
                        c.send({"op": "abort", "id": 0, **abort})
        except (EOFError, OSError):
            logging.error("rank %d has ended", r)
            os._exit(1)

    def call(self, op, only=None, abort=None, **fields):
        """Asks all ranks, or only one, and waits for all answers. StageError
        is the cause when one has failed; the others have been sent `abort`
        then."""
        ranks = range(len(self.channels)) if only is None else [only]
        answers = [None if r in ranks else {"skip": True}
                   for r in range(len(self.channels))]
        event = threading.Event()
        with self._lock:
            self._next += 1
            ident = self._next
            self._waiting[ident] = (answers, event, abort)
        with self._order:  # all ranks get all in the same order
            for r in ranks:
                self.channels[r].send({"op": op, "id": ident, **fields})
        event.wait()
        with self._lock:
            del self._waiting[ident]
        bad = [(a["error"] == "CANCELLED", r) for r, a in enumerate(answers)
               if "error" in a]
        if bad:  # one that was cancelled is not the cause
            r = min(bad)[1]
            raise StageError(answers[r]["error"], answers[r]["message"],
                             f"{self.name} rank {r}")
        return [a for a in answers if "skip" not in a]


class Blocks:
    """Free blocks. A request waits for them up to `timeout` seconds."""

    def __init__(self, n, size, where, timeout):
        self.size, self.where, self.timeout, self.n = size, where, timeout, n
        self._free = list(range(n))
        self._changed = threading.Condition()

    def take(self, tokens):
        n = -(-tokens // self.size)
        if n > self.n:
            raise StageError("TOO_LARGE", f"{tokens} tokens; the KV cache "
                             f"holds {self.n * self.size}", self.where)
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._free) >= n,
                                          self.timeout):
                raise StageError("BUSY", f"no {n} free blocks of the KV cache",
                                 self.where)
            taken, self._free = self._free[:n], self._free[n:]
            return taken

    def give(self, ids):
        with self._changed:
            self._free = list(ids) + self._free
            self._changed.notify_all()

    def __len__(self):
        return len(self._free)


class Handler(BaseHTTPRequestHandler):
    """JSON in, JSON out. `routes`: {path: function(self, body) -> reply or
    None when it has answered}."""

    protocol_version = "HTTP/1.1"
    routes = {}

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.dispatch({})

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # a client that went away
            pass

    def do_POST(self):
        try:
            size = int(self.headers.get("Content-Length") or 0)
            if size > BODY_MAX:
                self.close_connection = True
                self.reply(413, {"error": {
                    "type": "TOO_LARGE",
                    "message": f"a body of more than {BODY_MAX} bytes"}})
                return
            if size < 0:  # -1 would read to the end of the connection
                raise ValueError(f"Content-Length {size}")
            body = json.loads(self.rfile.read(size) or b"{}")
            if not isinstance(body, dict):
                raise ValueError("not an object")
        except (ValueError, RecursionError) as e:
            self.reply(400, {"error": {"type": "INVALID",
                                       "message": f"bad JSON: {e}"}})
            return
        self.dispatch(body)

    def dispatch(self, body):
        route = self.routes.get(self.path)
        if route is None:
            self.reply(404, {"error": {"type": "NOT_FOUND",
                                       "message": f"no {self.path} here"}})
            return
        try:
            reply = route(self, body)
            if reply is not None:
                self.reply(200, reply)
        except StageError as e:
            logging.warning("%s", e)
            self.reply(e.http, e.body())
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            self.reply(400, {"error": {"type": "INVALID",
                                       "message": f"{self.path}: {e!r}"}})

    def reply(self, status, body):
        data = json.dumps(body).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin_chunks(self, content_type):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end_chunks(self):
        self.wfile.write(b"0\r\n\r\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128


def serve(port, routes, ready):
    """Listens until SIGTERM. ready(port) is called when it does; port 0 takes
    a free one."""
    handler = type("RoutesHandler", (Handler,), {"routes": routes})
    server = Server(("127.0.0.1", port), handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    ready(server.server_address[1])
    server.serve_forever()
