"""A rank of a stage: one process with its shard of the model and of the KV
cache, its own kvferryd, and a channel to the stage's server.

The main thread computes what the server asks for, in that order, so that all
ranks of a stage take part in the same sums. Fetching runs in threads beside
it. An error of a transfer is an answer; an error in the model ends the process,
because the others could not go on anyway, and with it the stage, which is
started again.
"""
import logging
import os
import threading
import traceback

import numpy as np

import kvferry
from model import Model
from transfer import (Link, pieces, put_head, read_head, start_head,
                      transfer_of)


class Rank:
    def __init__(self, options, config, weights, stage, rank, channel, reduce):
        self.options, self.config, self.rank = options, config, rank
        self.channel = channel
        tp = options["prefill_tp" if stage == 0 else "decode_tp"]
        self.model = Model(config, weights, tp, rank, reduce)
        self.link = Link(options, config, stage, tp, rank,
                         self.on_event if stage == 0 else None)
        self.cache = self.link.cache
        self.heads = {}
        self.transfer = transfer_of(options, self.link, self.retired)

    def serve(self):
        """Until the server closes the channel."""
        self.transfer.ensure()
        self.channel.send({"ready": os.getpid()})
        while True:
            try:
                m = self.channel.recv()
            except EOFError:
                return
            op = getattr(self, "do_" + m["op"])
            if m["op"] in ("fetch", "head", "drop", "check"):
                threading.Thread(target=self.beside, args=(op, m),
                                 daemon=True).start()
            else:
                self.answer(op, m)

    def answer(self, op, m):
        try:
            reply = op(m)
        except kvferry.KvferryError as e:
            reply = {"error": e.status, "message": e.message}
        self.channel.send({"id": m["id"], **(reply or {})})

    def beside(self, op, m):
        """As answer, in a thread: nobody else waits for this rank."""
        try:
            self.answer(op, m)
        except Exception as e:
            traceback.print_exc()
            self.channel.send({"id": m["id"], "error": "INTERNAL",
                               "message": repr(e)})

    def on_event(self, event):
        self.transfer.on_event(event)

    def retired(self, rid):
        """Nothing of that request is read here any more."""
        self.channel.send({"retired": rid})

    # ---- prefill -----------------------------------------------------------

    def do_prefill(self, m):
        """Computes in chunks, and sends: at the end, or (with a `head`)
        each layer group of each chunk as soon as it is there. An error in
        sending is told at the end: the sums of the other ranks need this
        one."""
        rid, tokens, chunk = m["rid"], np.array(m["tokens"]), m["chunk"]
        self.cache.open(rid, m["blocks"])
        self.transfer.begin(rid)
        overlap = m["head"] is not None
        todo = pieces(self.config, len(tokens), chunk if overlap else 0,
                      m["groups"])
        state = {"sent": 0, "error": None, "handles": {}}

        def send(piece):
            if state["error"] is not None:
                return
            try:
                handle, size = self.transfer.send(rid, piece)
                state["sent"] += size
                if handle is not None:
                    state["handles"][piece.name] = handle
            except kvferry.KvferryError as e:
                state["error"] = e
        try:
            if overlap and self.rank == 0:
                try:
                    put_head(self.link, rid, m["head"])
                except kvferry.KvferryError as e:
                    state["error"] = e
            for first in range(0, len(tokens), chunk):
                ends = {p.layers[-1]: p for p in todo
                        if overlap and p.first == first}

                def done(layer, ends=ends):
                    if layer in ends:
                        send(ends[layer])
                self.model.forward([(rid, first, tokens[first:first + chunk])],
                                   self.cache, done)
            for piece in () if overlap else todo:
                send(piece)
        finally:
            self.cache.close(rid)
        try:
            if state["error"] is not None:
                self._give_up(rid, todo, state["error"])
        finally:
            self.transfer.finish(rid)
        return {"sent": state["sent"], "handles": state["handles"]}

    def _give_up(self, rid, todo, error):
        try:
            self.transfer.drop(rid)
            self.transfer.fail(rid, ["head"] + [p.name for p in todo],
                               str(error))
        except kvferry.KvferryError:
            pass  # then they hear of the daemon
        raise error

    def do_check(self, m):
        """Is the daemon the same one, and what it was told still true?"""
        self.transfer.ensure()

    def do_drop(self, m):
        return {"dropped": self.transfer.drop(m["rid"])}

    # ---- decode ------------------------------------------------------------

    def do_head(self, m):
        self.heads[m["seq"]] = pending = start_head(self.link, m["rid"],
                                                    m["timeout"])
        if m["seq"] in self.transfer.aborted:
            pending.cancel()
        try:
            return {"head": read_head(pending)}
        except kvferry.KvferryError:
            self.transfer.closed(m["seq"])
            raise
        finally:
            del self.heads[m["seq"]]

    def do_fetch(self, m):
        self.cache.open(m["seq"], m["blocks"])
        todo = pieces(self.config, m["n_tokens"], m["chunk"], m["groups"])
        try:
            size, how = self.transfer.fetch(m["rid"], m["seq"], todo,
                                            m["handles"], m["timeout"])
        except BaseException:
            self.do_close(m)
            raise
        return {"bytes": size, "how": how}

    def do_abort(self, m):
        """What that sequence waits for, or will wait for, does not come."""
        self.transfer.abort(m["seq"])  # remembers it, first
        head = self.heads.get(m["seq"])
        if head is not None:
            head.cancel()

    def do_step(self, m):
        """One token for each of several sequences."""
        rows = [(seq, at, np.array([token])) for seq, at, token in m["rows"]]
        return {"best": self.model.best(self.model.forward(rows, self.cache))}

    def do_close(self, m):
        self.cache.close(m["seq"])
        self.transfer.closed(m["seq"])


def run(*args):
    """The whole life of a rank process, after the fork."""
    status = 1
    try:
        Rank(*args).serve()
        status = 0
    except kvferry.KvferryError as e:
        logging.error("%s", e)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)
