"""The decode server: the last token of a prompt and a handle in, tokens out.

It never sees a prompt. Requests are fetched side by side and then decoded
together, one token each in every step.
"""
import itertools
import json
import logging
import os
import queue
import threading
import time
import traceback

from model import as_input, choose
from stage import Blocks, Ranks, StageError, from_json, serve


class Sequence:
    """A request that is being decoded. `out`: its tokens, then None."""

    def __init__(self, rid, at, token, n):
        self.rid, self.at, self.token, self.left = rid, at, token, n
        self.out = queue.Queue()
        self.gone = False


class Decode:
    def __init__(self, options, config, weights):
        self.options, self.config = options, config
        side = options["sides"][1]
        self.blocks = Blocks(side["blocks"], side["block"], "decode",
                             options["timeout"])
        self.ranks = Ranks("decode", options, config, weights, 1)
        self.active = []
        self.fetching = {}  # request: its sequence
        self.tries = itertools.count()
        self.more = threading.Condition()
        threading.Thread(target=self.loop, daemon=True).start()

    # ---- one token of everybody --------------------------------------------

    def loop(self):
        try:
            while True:
                with self.more:
                    self.more.wait_for(lambda: self.active)
                    rows = list(self.active)
                self.step(rows)
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # nobody would decode any more

    def step(self, rows):
        got = self.ranks.call("step", rows=[
            (s.rid, s.at, s.token) for s in rows])
        for s, token in zip(rows, choose([a["best"] for a in got])):
            s.at, s.token, s.left = s.at + 1, as_input(token), s.left - 1
            s.out.put(token)
            if s.left == 0 or s.gone:
                with self.more:
                    self.active.remove(s)
                s.out.put(None)

    # ---- a request ---------------------------------------------------------

    def fetch(self, body):
        """(sequence, its blocks, times): its KV cache is here."""
        rid, n = str(body["request_id"]), int(body.get("max_tokens", 16))
        if not 1 <= n <= self.config.max_tokens:
            raise StageError("INVALID", f"max_tokens {n}", "decode")
        limit = min(float(body.get("timeout", 1e9)), self.options["timeout"])
        began = time.perf_counter()
        name = f"{rid}#{next(self.tries)}"  # it may be tried again
        with self.more:
            self.fetching[rid] = name
        try:
            if "n_tokens" not in body:
                # It may not even be computed: what will come is told first.
                body = self.ranks.call("head", only=0, rid=rid, seq=name,
                                       timeout=limit)[0]["head"]
            blocks, got = self.fetch_blocks(rid, name, body, n, limit)
        except BaseException:
            self.ranks.call("close", seq=name)  # they forget it
            raise
        finally:
            with self.more:
                self.fetching.pop(rid, None)
        ms = (time.perf_counter() - began) * 1000
        size = sum(a["bytes"] for a in got)
        how = sorted({h for a in got for h in a["how"]})
        logging.info("%s: fetched %d bytes by %s, %.1f ms", rid, size,
                     " ".join(how), ms)
        return (Sequence(name, body["n_tokens"], body["last_token"], n),
                blocks, {"fetch_ms": round(ms, 2), "bytes": size, "how": how})

    def fetch_blocks(self, rid, name, body, n, limit):
        total = body["n_tokens"] + n
        if total > self.config.max_tokens:
            raise StageError("TOO_LARGE", f"{total} tokens; the model takes "
                             f"{self.config.max_tokens}", "decode")
        blocks = self.blocks.take(total)
        try:
            return blocks, self.ranks.call(
                "fetch", abort={"seq": name}, rid=rid, seq=name, blocks=blocks,
                n_tokens=body["n_tokens"], chunk=body["chunk"],
                groups=body["groups"], timeout=limit,
                handles=from_json(body.get("handles", {})))
        except BaseException:
            self.blocks.give(blocks)
            raise

    def decode(self, http, body):
        """{"request_id", "max_tokens", what /prefill answered} -> a line of
        JSON for each token, as it comes, and one at the end."""
        s, blocks, times = self.fetch(body)
        try:
            with self.more:
                self.active.append(s)
                self.more.notify()
            http.begin_chunks("application/x-ndjson")
            while True:
                token = s.out.get()
                line = {"done": True, **times} if token is None else \
                    {"token": token}
                http.chunk(json.dumps(line).encode() + b"\n")
                if token is None:
                    break
            http.end_chunks()
        finally:
            self.finish(s, blocks)

    def finish(self, s, blocks):
        """Also when the reader of the answer went away."""
        s.gone = True
        with self.more:
            waiting = s in self.active
        while waiting and s.out.get() is not None:
            pass
        self.ranks.call("close", seq=s.rid)
        self.blocks.give(blocks)

    def abort(self, http, body):
        """What a request waits for will not come."""
        with self.more:
            name = self.fetching.get(str(body["request_id"]))
        if name is not None:
            self.ranks.call("abort", seq=name)
        return {"aborted": name is not None}

    def health(self, http, body):
        return {"status": "ok", "free_blocks": len(self.blocks),
                "active": len(self.active), "ranks": self.ranks.pids}

    def run(self, port, ready):
        serve(port, {"/decode": lambda h, b: self.decode(h, b),
                     "/abort": lambda h, b: self.abort(h, b),
                     "/health": lambda h, b: self.health(h, b)}, ready)
