"""KV caches as they lie in memory: layouts, published blocks, pulls.

For both clients: what `_run` returns is the result of Client's methods and
the coroutine of AsyncClient's.
"""
from __future__ import annotations

from typing import (Any, Dict, List, Mapping, NamedTuple, Optional, Sequence,
                    Tuple, Union)

from . import ops
from .buffers import Region
from .calls import Request
from .engine import Engine
from .ops import Op, Worker


class Blocks(NamedTuple):
    """Blocks of a request in one group of layers: their ids, and the logical
    position (in blocks) of the first."""
    group: int
    first: int
    ids: Sequence[int]


class Pulled(NamedTuple):
    """What a pull brought. `filled`: {group, first_token, tokens} of each
    group; `sources`: the workers that were read ("stage.rank")."""
    bytes: int
    reads: int
    sources: List[str]
    filled: List[Dict[str, int]]
    timing: Dict[str, int]
    transport: str


BlocksLike = Union[Blocks, Tuple[int, int, Sequence[int]]]


def _views(views: Sequence[Mapping[str, Any]]) -> List[Dict[str, Any]]:
    out = []
    for v in views:
        v = dict(v)
        if isinstance(v.get("region"), Region):
            v["region"] = v["region"].id
        out.append(v)
    return out


def _wire(blocks: Sequence[BlocksLike]) -> List[Dict[str, Any]]:
    return [{"group": int(g), "first": int(first),
             "ids": [int(i) for i in ids]} for g, first, ids in blocks]


def pull(e: Engine, layout: int, source: Union[Mapping[str, Any], str],
         blocks: Sequence[BlocksLike], *,
         from_: Union[int, Worker, None] = None,
         timeout: Optional[float] = None,
         together: Optional[Tuple[str, int]] = None) -> Op[Any]:
    """See BlockOps.pull."""
    if timeout is not None and timeout <= 0:
        raise ValueError("a pull waits for its publication: timeout > 0, or "
                         "math.inf")
    f: Dict[str, Any] = {"layout": layout, "blocks": _wire(blocks)}
    if isinstance(source, str):
        f["request_id"] = source
        if from_ is None:
            raise ValueError("a request id needs from_, the sender")
        f.update(ops.source_fields(from_))
    else:
        f["handle"] = dict(source)
    if together is not None:
        f["together"] = {"name": together[0], "size": int(together[1])}
    limit = ops.time_fields(timeout, f)
    r = yield Request("pull", f, None, limit)
    return Pulled(r["bytes"], r["reads"], r["sources"], r["filled"],
                  r["timing"], r.get("transport", ""))


class BlockOps:
    """Operations on blocks of KV caches, of both clients."""

    _engine: Engine

    def _run(self, op: Op[Any]) -> Any:
        raise NotImplementedError

    def layout(self, *, tp: int, rank: int, bs: int, nblocks: int,
               groups: Sequence[Mapping[str, Any]],
               layers: Sequence[Mapping[str, Any]],
               views: Sequence[Mapping[str, Any]], pp: int = 1, ppl: int = 1,
               order: str = "HND", kv: str = "split", shared: bool = False
               ) -> Any:
        """Tells the daemon how the KV cache of this rank lies in its regions;
        the number of the layout, for publish and pull.

        The words are those of docs/LAYOUTS.md. views: of this rank's layers,
        {layer, part, region, off0, stride, page} with part k, v, kv, lat or
        ssm; `region` is a Region or its id. A layout ends with the session.

        >>> cache = client.region(16 * 256)
        >>> view = {"layer": 0, "part": "kv", "region": cache, "off0": 0,
        ...         "stride": 256, "page": 256}
        >>> kv = client.layout(
        ...     tp=1, rank=0, bs=4, nblocks=16, kv="packed",
        ...     groups=[{"kind": "full"}], views=[view],
        ...     layers=[{"name": "l0", "group": 0, "kind": "attn",
        ...              "comps": [["k", 2, 16], ["v", 2, 16]]}])

        Blocks 3 and 1 hold the six tokens of a request:

        >>> cache.numpy().reshape(16, 256)[[3, 1]] = 7
        >>> handle = client.publish(kv, "req-7", 6, [(0, 0, [3, 1])])

        and this worker, or another, reads them into its blocks 8 and 9:

        >>> got = client.pull(kv, handle, [(0, 0, [8, 9])], timeout=5)
        >>> got.filled
        [{'group': 0, 'first_token': 0, 'tokens': 6}]
        >>> int(cache.numpy().reshape(16, 256)[8:10].min())
        7
        """
        return self._run(ops.simple("layout", {
            "tp": tp, "pp": pp, "rank": rank, "bs": bs, "ppl": ppl,
            "nblocks": nblocks, "order": order, "kv": kv, "shared": shared,
            "groups": [dict(g) for g in groups],
            "layers": [dict(x) for x in layers], "views": _views(views)},
            "layout"))

    def publish(self, layout: int, request_id: str, n_tokens: int,
                blocks: Sequence[BlocksLike], *, tag: Optional[bytes] = None,
                ttl: Optional[float] = None, notify: bool = False) -> Any:
        """Publishes the blocks of a request; the handle for pull, a dict of
        str, int and bytes.

        They must not be written to until the event `retired` (with notify)
        has come. tag: 16 bytes, the same on all ranks of a request. ttl:
        seconds.
        """
        f: Dict[str, Any] = {"layout": layout, "request_id": request_id,
                             "n_tokens": int(n_tokens),
                             "blocks": _wire(blocks)}
        if tag is not None:
            f["tag"] = tag
        if ttl is not None:
            f["ttl_ms"] = max(1, round(ttl * 1000)) if ttl > 0 else 0
        if notify:
            f["notify"] = True
        return self._run(ops.simple("publish", f, "handle"))

    def pull(self, layout: int, source: Union[Mapping[str, Any], str],
             blocks: Sequence[BlocksLike], *,
             from_: Union[int, Worker, None] = None,
             timeout: Optional[float] = None,
             together: Optional[Tuple[str, int]] = None) -> Any:
        """Reads what this rank needs of a request into its own blocks, from
        all ranks of the sender that have it, whatever their tensor-parallel
        size, block size and page order.

        source: a handle of any rank; or the sender's request id, and `from_`,
        its stage or Worker. timeout: seconds, also for waiting until it is
        published; None for the daemon's default. together: (name, number of
        ranks) of pulls that all succeed or all fail. Returns a Pulled.
        """
        return self._run(pull(self._engine, layout, source, blocks,
                              from_=from_, timeout=timeout,
                              together=together))

    def fail_request(self, request_id: str, from_stage: int, to_stage: int,
                     reason: str = "") -> Any:
        """The blocks of a request will not be published, and its key of that
        edge not be put: who waits for them gets Failed at once."""
        return self._run(ops.simple("fail", {
            "request_id": request_id, "from": from_stage, "to": to_stage,
            "reason": reason}))
