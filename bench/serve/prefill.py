"""The prefill server: prompt in, KV cache published, a handle out."""
import logging
import threading
import time

from model import encode
from stage import Blocks, Ranks, StageError, serve, to_json


class Prefill:
    def __init__(self, options, config, weights):
        self.options, self.config = options, config
        side = options["sides"][0]
        self.blocks = Blocks(side["blocks"], side["block"], "prefill",
                             options["timeout"])
        self.ranks = Ranks("prefill", options, config, weights, 0)
        self.one = threading.Lock()  # one prompt at a time
        self.lock = threading.Lock()
        self.held = {}               # request: (blocks, ranks that hold them)
        self.ranks.on_retired = self.retired

    def prefill(self, http, body):
        """{"request_id", "prompt"} -> what the decode server needs: the last
        token and how to fetch the KV cache of those before it."""
        rid, tokens = str(body["request_id"]), encode(body["prompt"])
        if len(tokens) < 2:
            raise StageError("INVALID", "an empty prompt", "prefill")
        if len(tokens) > self.config.max_tokens:
            raise StageError("TOO_LARGE", f"{len(tokens)} tokens; the model "
                             f"takes {self.config.max_tokens}", "prefill")
        o = self.options
        kv = {"request_id": rid, "n_tokens": len(tokens) - 1,
              "chunk": o["chunk"] if o["overlap"] else 0,
              "groups": o["groups"], "last_token": tokens[-1]}
        began = time.perf_counter()
        with self.one:
            if len(self.blocks) * self.blocks.size < kv["n_tokens"]:
                self.ranks.call("check")  # events of a dead daemon do not come
            blocks = self.blocks.take(kv["n_tokens"])
            with self.lock:
                self.held[rid] = (blocks, set(range(len(self.ranks.pids))))
            got = self.ranks.call("prefill", rid=rid, tokens=tokens[:-1],
                                  blocks=blocks, chunk=o["chunk"],
                                  groups=o["groups"],
                                  head=kv if o["overlap"] else None)
        ms = (time.perf_counter() - began) * 1000
        sent = sum(a["sent"] for a in got)
        logging.info("%s: %d tokens, %d bytes of KV cache, %.1f ms", rid,
                     len(tokens), sent, ms)
        return {**kv, "handles": to_json(got[0]["handles"]), "bytes": sent,
                "ms": round(ms, 2)}

    def retired(self, rank, rid):
        """Nobody reads a request's blocks at that rank any more."""
        with self.lock:
            blocks, ranks = self.held.get(rid, ([], set()))
            ranks.discard(rank)
            if ranks or not blocks:
                return
            del self.held[rid]
        self.blocks.give(blocks)

    def drop(self, http, body):
        """The decode stage will not fetch it."""
        got = self.ranks.call("drop", rid=str(body["request_id"]))
        return {"dropped": sum(a["dropped"] for a in got)}

    def health(self, http, body):
        return {"status": "ok", "free_blocks": len(self.blocks),
                "ranks": self.ranks.pids}

    def run(self, port, ready):
        serve(port, {"/prefill": lambda h, b: self.prefill(h, b),
                     "/drop": lambda h, b: self.drop(h, b),
                     "/health": lambda h, b: self.health(h, b)}, ready)
