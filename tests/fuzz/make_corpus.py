#!/usr/bin/env python3
"""Writes the seed corpora of the fuzz targets into corpus/ (committed).

Needs nothing but the standard library: the packer below knows the few
MessagePack forms that the seeds use.
"""
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent


def pack(v):
    if v is None:
        return b"\xc0"
    if v is True or v is False:
        return b"\xc3" if v else b"\xc2"
    if isinstance(v, int):
        if v < 0:
            return b"\xd3" + struct.pack(">q", v)
        if v < 128:
            return bytes([v])
        return b"\xcf" + struct.pack(">Q", v)
    if isinstance(v, float):
        return b"\xcb" + struct.pack(">d", v)
    if isinstance(v, str):
        b = v.encode()
        return (bytes([0xA0 | len(b)]) if len(b) < 32
                else b"\xda" + struct.pack(">H", len(b))) + b
    if isinstance(v, bytes):
        return b"\xc5" + struct.pack(">H", len(v)) + v
    if isinstance(v, list):
        return b"\xdc" + struct.pack(">H", len(v)) + b"".join(map(pack, v))
    return (b"\xde" + struct.pack(">H", len(v)) +
            b"".join(pack(k) + pack(x) for k, x in v.items()))


ID = bytes(range(16))
SEG = [{"buffer": 1, "offset": 0, "length": 9}, {"buffer": 2}]
GET = {"key": "k", "from": {"stage": 0, "rank": 1, "replica": 0},
       "source": {"host": "h", "port": 9}, "generation": 3,
       "metadata": {"source_host": "h", "source_port": 9, "generation": 1,
                    "incarnation": ID},
       "timeout_ms": 5, "wait": False, "mode": "copy", "into": SEG}
BLOCKS = [{"group": 0, "first": 0, "ids": [3, 1]},
          {"group": 1, "first": 1, "ids": []}]
REQUESTS = {
    "hello": {"version": 1, "client": "c", "pid": 2, "events": True,
              "session": ID, "unmapped": ID},
    "bye": {}, "ping": {}, "stats": {}, "health": {},
    "alloc": {"size": 4096}, "free": {"buffer": 1, "quiet": True},
    "register": {"fd": 3, "size": 4096}, "unregister": {"region": 1},
    "put": {"key": "k", "segments": SEG, "meta": b"m", "ttl_ms": 5,
            "readers": 2, "on_duplicate": "reject", "checksum": True,
            "notify": True, "next": 4096},
    "get": GET, "release": {"buffer": 1},
    "mget": {"gets": [GET, {"request_id": "r", "from": 0, "to": 1}],
             "timeout_ms": 5, "all_or_nothing": True},
    "cancel": {"target": 7}, "fail": {"key": "k", "reason": "r"},
    "cleanup": {"request_id": "r", "from": 0, "to": 1},
    "list": {"prefix": "p", "limit": 5},
    "peer": {"stage": 1, "rank": 0, "replica": 0, "host": "h", "port": 9},
    "drain": {"timeout_ms": 5},
    "layout": {"tp": 2, "pp": 1, "rank": 1, "bs": 4, "ppl": 1, "nblocks": 8,
               "order": "HND", "kv": "split", "shared": False,
               "groups": [{"kind": "full"}, {"kind": "swa", "window": 5}],
               "layers": [{"name": "l0", "group": 0, "kind": "attn",
                           "comps": [["k", 4, 2], ["v", 4, 2]]},
                          {"name": "l1", "group": 1, "kind": "mla",
                           "comps": [["k", 1, 6]]}],
               "views": [{"layer": 0, "part": "k", "region": 9, "off0": 0,
                          "stride": 16, "page": 16},
                         {"layer": 1, "part": "lat", "region": 10, "off0": 4,
                          "stride": 24, "page": 24}]},
    "publish": {"layout": 3, "request_id": "r", "tag": ID, "n_tokens": 6,
                "blocks": BLOCKS, "ttl_ms": 5, "notify": True},
    "pull": {"layout": 3, "handle": {
        "request_id": "r", "tag": ID, "source_host": "h", "source_port": 9,
        "incarnation": ID}, "blocks": BLOCKS, "timeout_ms": 5,
        "together": {"name": "t", "size": 2}},
    "push": {"key": "k", "segments": SEG, "meta": b"m", "ttl_ms": 5,
             "readers": 2, "on_duplicate": "reject", "checksum": True,
             "to": {"stage": 1, "rank": 0}, "timeout_ms": 5},
    "expose": {"name": "w", "size": 4096, "writable": True},
    "unexpose": {"window": 1},
    "write": {"to": {"stage": 1}, "window": "w", "target_offset": 4096,
              "segments": SEG, "notify": b"n"},
    "read": {"target": {"host": "h", "port": 9}, "window": "w",
             "segments": SEG, "timeout_ms": 5},
}


def write(target, name, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def main():
    for op, fields in REQUESTS.items():
        write("fuzz_engine_msg", op,
              b"\0" + pack({"id": 1, "op": op, **fields}))
    write("fuzz_engine_msg", "put_payload",
          b"\1" + pack({"op": "put", "request_id": "r", "from": 0, "to": 1}))

    write("fuzz_mp", "all_types", pack(
        {"id": 5, "a": [1, -1, 1.5, None, True, b"b", "s" * 40, {}, []]}))
    write("fuzz_mp", "nested", b"\x91" * 16 + b"\xc0")
    write("fuzz_mp", "huge_array", b"\xdd\xff\xff\xff\xff")
    write("fuzz_mp", "ext", b"\x93\xd4\x01x\xc7\x02\x01xy\xd6\xff\0\0\0\0")

    golden = HERE.parent / "compat" / "peer-v1.txt"
    for line in golden.read_text().splitlines():
        name, digits = line.split()
        write("fuzz_peer_msg", name.lower(), bytes.fromhex(digits))

    write("fuzz_frame", "preface", b"KVFB\0\1\0\2" + b"s" * 32)
    for op in (1, 2):
        write("fuzz_frame", f"request{op}", b"KQ" + struct.pack(
            ">HIQQ16sQQ", op, 0, 1, 2, ID, 4096, 65536))
    runs = b"".join(struct.pack(">QI", i << 20, 4096) for i in range(3))
    for op in (3, 4):
        write("fuzz_frame", f"runs{op}", b"KQ" + struct.pack(
            ">HIQQ16sQQ", op, 0, 1, 2, ID, 3, 3 * 4096) + runs)
    write("fuzz_frame", "answer",
          b"KR" + struct.pack(">HIQQ", 0, 0, 1, 65536) + bytes(32))

    for case in sorted((HERE.parent / "layout" / "cases").glob("*.case")):
        write("fuzz_case", case.stem, case.read_bytes())

    write("fuzz_conf", "small", b"[worker]\ncluster = c\nstage = 1\n"
          b"rank = 0\n[connector]\nhost = 127.0.0.1\nzmq_port = 50000\n"
          b"memory_pool_size = 1GiB\nget_sub_timeout_ms = 30s\n"
          b"[edge 0->1]\nwindow_size = -1\n[peer 0.0]\nhost = h\nport = 9\n")
    write("fuzz_conf", "broken", b"[worker\nstage == 1\n=\n[edge 0->\n")


if __name__ == "__main__":
    main()
