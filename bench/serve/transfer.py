"""How the KV cache of a request gets from the prefill ranks to the decode
ranks: pieces of it, each some layers of some tokens.

PullTransfer  a prefill rank publishes the blocks of the piece where they lie;
              a decode rank pulls what it needs of them into its own blocks,
              from whichever ranks have it. Nothing is copied by engines.
KeyTransfer   a key per rank and piece: the prefill rank copies the piece into
              a buffer of its daemon's pool and puts it; a decode rank gets the
              pieces of those ranks that have its heads.

Plain: one piece per layer group, sent when the prompt is done. Overlapped: the
prompt is computed in chunks, and each layer group of each chunk is sent as
soon as it is computed, while the decode ranks already wait for it; a `head`
that is sent first tells them what will come.
"""
import dataclasses
import hashlib
import threading
import time
from typing import List

import msgpack
import numpy as np

import kvferry
from cache import Cache
from model import own

HEAD_STAGE = 0


@dataclasses.dataclass(frozen=True)
class Piece:
    name: str
    group: int
    layers: range
    first: int   # token
    end: int
    last: bool


def groups_of(config, groups):
    """The layers of each group."""
    groups = min(groups, config.layers)
    return [range(g * config.layers // groups,
                  (g + 1) * config.layers // groups) for g in range(groups)]


def pieces(config, n_tokens, chunk, groups) -> List[Piece]:
    """All pieces in the order in which they are computed; chunk 0: the whole
    prompt is one."""
    chunk = chunk or n_tokens
    out = []
    for first in range(0, n_tokens, chunk):
        end = min(first + chunk, n_tokens)
        for g, layers in enumerate(groups_of(config, groups)):
            out.append(Piece(f"t{first}g{g}", g, layers, first, end, False))
    out[-1] = dataclasses.replace(out[-1], last=True)
    return out


def sources(config, prefill_tp, decode_tp, rank):
    """{prefill rank: its heads} that a decode rank reads: for each of its
    heads the lowest rank of its share of the line that has it."""
    out = {}
    share = range(rank * prefill_tp // decode_tp,
                  -(-(rank + 1) * prefill_tp // decode_tp))
    for head in own(config.kv_heads, decode_tp, rank):
        p = next(p for p in share
                 if head in own(config.kv_heads, prefill_tp, p))
        out[p] = own(config.kv_heads, prefill_tp, p)
    return out


class Link:
    """A rank's connection to its kvferryd, its KV cache, and what has to be
    done again when that daemon was restarted."""

    def __init__(self, options, config, stage, tp, rank, on_event=None):
        self.config, self.tp, self.rank = config, tp, rank
        self.peers = {0: options["prefill_tp"], 1: options["decode_tp"]}
        self.ttl, self.groups = options["ttl"], options["groups"]
        self.client = kvferry.Client(
            options["endpoints"][stage][rank], name=f"serve-{stage}-{rank}",
            connect_timeout=10, on_event=on_event)
        side = options["sides"][stage]
        size = Cache.size(config, tp, rank, side["blocks"], side["block"])
        self.region = kvferry.Region(size)
        self.cache = Cache(config, tp, rank, side["blocks"], side["block"],
                           side["order"], self.region)


class Fetch:
    """The get of one piece from one prefill rank."""

    def __init__(self, transfer, rid, piece, source, timeout):
        self.transfer, self.piece, self.source = transfer, piece, source
        self.key = transfer.key(rid, piece.name)
        self.until = time.monotonic() + timeout
        self.taken = False
        self.start()

    def start(self):
        self.get = self.transfer.client.start_get(
            self.key, kvferry.Worker(0, self.source),
            timeout=max(0.001, self.until - time.monotonic()))

    def result(self):
        """The payload. A daemon that was restarted is asked once more: it has
        what is put from then on."""
        try:
            payload = self.get.result()
        except kvferry.ConnectionLost:
            raise
        except kvferry.PeerUnreachable:
            self.start()
            payload = self.get.result()
        self.taken = True
        return payload

    def store(self, seq, payload):
        """Into the cache."""
        t, piece = self.transfer, self.piece
        theirs = t.sources[self.source]
        t.cache.write(seq, piece.layers, piece.first, payload.numpy(
            np.float16, (len(piece.layers), 2, piece.end - piece.first,
                         len(theirs), t.link.config.head_dim)), theirs)

    def end(self):
        """Nobody waits for it any more."""
        if self.taken:
            return
        self.get.cancel()
        try:
            self.get.result().discard()
        except kvferry.KvferryError:
            pass


class KeyTransfer:
    """As PullTransfer; the pieces are copies, so nothing is held."""

    def __init__(self, link, retired):
        self.link, self.retired = link, retired
        self.client, self.cache = link.client, link.cache
        p, d = link.peers[0], link.peers[1]
        self.readers = sum(link.rank in sources(link.config, p, d, r)
                           for r in range(d))
        self.fetching = {}
        self.aborted = set()
        self.sources = sources(link.config, p, d, link.rank) \
            if link.rank < d else {}

    @staticmethod
    def key(rid, name):
        return kvferry.key_for(f"{rid}/{name}", 0, 1)

    # ---- at the prefill rank -----------------------------------------------

    def ensure(self):
        """Nothing of it is known to the daemon."""

    def on_event(self, event):
        pass

    def begin(self, rid):
        pass

    def finish(self, rid):
        self.retired(rid)

    def send(self, rid, piece):
        """Copies the piece out of the cache and puts it; returns no handle
        and its bytes."""
        if self.readers == 0:
            return None, 0
        c = self.link.config
        shape = (len(piece.layers), 2, piece.end - piece.first,
                 len(self.cache.heads), c.head_dim)
        with self.client.alloc(2 * int(np.prod(shape))) as buffer:
            self.cache.read(rid, piece.layers, piece.first, piece.end,
                            buffer.numpy(np.float16, shape))
            return None, self.client.put(
                self.key(rid, piece.name), buffer, readers=self.readers,
                ttl=self.link.ttl).size

    def fail(self, rid, names, reason):
        """Those pieces will not come: who waits for them hears it."""
        for name in names:
            self.client.fail(self.key(rid, name), reason)

    def drop(self, rid):
        """Nobody will read what is left of a request."""
        return sum(self.client.cleanup(k["key"].rpartition(":")[0], 0, 1)
                   for k in self.client.list(f"{rid}/")
                   if k["state"] == "published")

    # ---- at the decode rank ------------------------------------------------

    def fetch(self, rid, seq, wanted, handles, timeout):
        """Gets all pieces of a request into a sequence of the cache, as they
        come; returns bytes and transports."""
        size, how = 0, set()
        self.fetching[seq] = pending = []
        try:
            for piece in wanted:
                for p in self.sources:
                    pending.append(Fetch(self, rid, piece, p, timeout))
            if seq in self.aborted:
                self.abort(seq)
            for f in pending:
                with f.result() as payload:
                    f.store(seq, payload)
                    size += payload.size
                    how.add(f"{payload.transport}/{payload.mode}")
        finally:
            del self.fetching[seq]
            for f in pending:
                f.end()
        return size, sorted(how)

    def abort(self, seq):
        """Another rank's fetch has failed: this one ends as CANCELLED."""
        self.aborted.add(seq)
        for f in list(self.fetching.get(seq, ())):
            f.get.cancel()

    def closed(self, seq):
        """The sequence has ended."""
        self.aborted.discard(seq)


class PullTransfer:
    """`retired(rid)`: nothing of a request is read here any more."""

    def __init__(self, link, retired):
        self.link, self.retired = link, retired
        self.client, self.cache = link.client, link.cache
        self.incarnation = None
        self.out = {}       # request: pieces that are published
        self.fetching = {}  # sequence: its pull
        self.aborted = set()
        self.lock = threading.Lock()

    # ---- the daemon knows the cache ----------------------------------------

    def ensure(self):
        """Registers the cache and its layout, again when the daemon is a new
        one; what the old one had published is gone."""
        with self.lock:
            self.client.ping()
            incarnation = self.client.info["incarnation"]
            if incarnation == self.incarnation:
                return
            gone = [rid for rid, names in self.out.items() if "" not in names]
            self.out = {rid: {""} for rid in self.out if rid not in gone}
            self.client.register(self.link.region)
            self.number = self.client.layout(**self._layout())
            self.incarnation = incarnation
        for rid in gone:
            self.retired(rid)

    def _layout(self):
        c, cache = self.link.config, self.cache
        groups = groups_of(c, self.link.groups)
        kv = [["k", c.kv_heads, c.head_dim * 2],
              ["v", c.kv_heads, c.head_dim * 2]]
        return {
            "tp": self.link.tp, "rank": self.link.rank,
            "bs": cache.block_size, "nblocks": cache.n_blocks,
            "order": cache.order, "kv": "split",
            "groups": [{"kind": "full"} for _ in groups],
            "layers": [{"name": f"layer{i}", "group": g, "kind": "attn",
                        "comps": kv}
                       for g, layers in enumerate(groups) for i in layers],
            "views": [{"layer": i, "part": "kv"[part],
                       "region": self.link.region,
                       "off0": cache.area(i, part), "stride": cache.page,
                       "page": cache.page}
                      for i in range(c.layers) for part in (0, 1)]}

    def _blocks(self, seq, piece):
        """The blocks of a piece, as publish and pull take them."""
        size = self.cache.block_size
        first = piece.first // size
        ids = self.cache.of[seq][first:-(-piece.end // size)]
        return [(piece.group, first, ids.tolist())]

    @staticmethod
    def name(rid, piece):
        return f"{rid}/{piece.name}"

    # ---- at the prefill rank -----------------------------------------------

    def begin(self, rid):
        """Before the first send; `retired` comes after finish() at the
        earliest."""
        with self.lock:
            self.out[rid] = {""}

    def finish(self, rid):
        self._gone(rid, "")

    def send(self, rid, piece):
        """Publishes the piece; returns its bytes and the handle."""
        self.ensure()
        name = self.name(rid, piece)
        with self.lock:
            self.out[rid].add(piece.name)
        try:
            handle = self.client.publish(
                self.number, name, piece.end, self._blocks(rid, piece),
                tag=hashlib.blake2b(name.encode(), digest_size=16).digest(),
                ttl=self.link.ttl, notify=True)
        except BaseException:
            self._gone(rid, piece.name)
            raise
        return handle, (len(piece.layers) * 2 * (piece.end - piece.first)
                        * len(self.cache.heads) * self.link.config.head_dim
                        * 2)

    def on_event(self, event):
        if event.get("event") == "retired" and "request_id" in event:
            self._gone(*event["request_id"].split("/"))

    def _gone(self, rid, name):
        with self.lock:
            names = self.out.get(rid)
            if names is None:
                return
            names.discard(name)
            if names:
                return
            del self.out[rid]
        self.retired(rid)

    def fail(self, rid, names, reason):
        """Those pieces will not come: who waits for them hears it."""
        for name in names:
            self.client.fail_request(f"{rid}/{name}", 0, 1, reason)

    def drop(self, rid):
        """Nobody will read what is left of a request."""
        with self.lock:
            names = list(self.out.get(rid, ()))
        return sum(self.client.cleanup(f"{rid}/{n}") for n in names if n)

    # ---- at the decode rank ------------------------------------------------

    def fetch(self, rid, seq, wanted, handles, timeout):
        """Pulls all pieces of a request into a sequence of the cache, as they
        come; returns bytes and transports."""
        size, how = 0, set()
        until = time.monotonic() + timeout
        for piece in wanted:
            if seq in self.aborted:
                raise kvferry.Cancelled("another rank has failed")
            got = self._pull(seq, piece, {
                "source": handles.get(piece.name) or self.name(rid, piece),
                "from_": None if piece.name in handles else 0,
                "timeout": max(0.001, until - time.monotonic())})
            size += got.bytes
            how.add(f"{got.transport}/pull")
        return size, sorted(how)

    def closed(self, seq):
        """The sequence has ended."""
        self.aborted.discard(seq)

    def _pull(self, seq, piece, args):
        """Once more with a new layout when the daemon is a new one, and once
        when one of the prefill ranks' is."""
        asked = False
        while True:
            self.ensure()
            incarnation = self.incarnation
            self.fetching[seq] = p = self.client.start_pull(
                self.number, blocks=self._blocks(seq, piece), **args)
            if seq in self.aborted:
                p.cancel()
            try:
                return p.result()
            except (kvferry.Stale, kvferry.Invalid):
                self.client.ping()
                if self.client.info["incarnation"] == incarnation:
                    raise
            except kvferry.ConnectionLost:
                raise
            except kvferry.PeerUnreachable:
                if asked:
                    raise
                asked = True
            finally:
                del self.fetching[seq]

    def abort(self, seq):
        """Another rank's fetch has failed: this one ends as CANCELLED."""
        self.aborted.add(seq)
        p = self.fetching.get(seq)
        if p is not None:
            p.cancel()

def put_head(link, rid, head):
    """Tells the decode stage what will come, before it is computed."""
    link.client.put(KeyTransfer.key(rid, "head"), msgpack.packb(head),
                    ttl=link.ttl)


def start_head(link, rid, timeout):
    """What put_head told, as a PendingGet for read_head."""
    return link.client.start_get(KeyTransfer.key(rid, "head"),
                                 kvferry.Worker(HEAD_STAGE, 0),
                                 timeout=timeout)


def read_head(pending):
    with pending.result() as p:
        return msgpack.unpackb(p.to_bytes())


def transfer_of(options, link, retired):
    kind = PullTransfer if options["transfer"] == "pull" else KeyTransfer
    return kind(link, retired)
