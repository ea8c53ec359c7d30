"""The prefill server: prompt in, KV cache published, a handle out."""
import logging
import threading
import time

from model import encode
from stage import Blocks, Ranks, StageError, serve


class Prefill:
    def __init__(self, options, config, weights):
        self.options, self.config = options, config
        side = options["sides"][0]
        self.blocks = Blocks(side["blocks"], side["block"], "prefill",
                             options["timeout"])
        self.ranks = Ranks("prefill", options, config, weights, 0)
        self.one = threading.Lock()  # one prompt at a time
        self.held = {}               # request: (blocks, ranks that read them)
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
            blocks = self.blocks.take(kv["n_tokens"])
            try:
                got = self.ranks.call("prefill", rid=rid, tokens=tokens[:-1],
                                      blocks=blocks, chunk=o["chunk"],
                                      groups=o["groups"],
                                      head=kv if o["overlap"] else None)
            finally:
                self.blocks.give(blocks)
        ms = (time.perf_counter() - began) * 1000
        sent = sum(a["sent"] for a in got)
        logging.info("%s: %d tokens, %d bytes of KV cache, %.1f ms", rid,
                     len(tokens), sent, ms)
        return {**kv, "bytes": sent, "ms": round(ms, 2)}

    def retired(self, rank, rid):
        pass

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
