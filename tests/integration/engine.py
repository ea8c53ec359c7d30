"""An engine in a process of its own, told what to do line by line (JSON on
stdin, one JSON answer a line on stdout). Bytes travel as {"hex": "..."}."""
import fcntl
import json
import os
import sys

import kvf


def plain(x):
    if isinstance(x, bytes):
        return {"hex": x.hex()}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list):
        return [plain(v) for v in x]
    return x


def fancy(x):
    if isinstance(x, dict):
        if set(x) == {"hex"}:
            return bytes.fromhex(x["hex"])
        return {k: fancy(v) for k, v in x.items()}
    if isinstance(x, list):
        return [fancy(v) for v in x]
    return x


def act(c, cmd):
    what = cmd["do"]
    fields = fancy(cmd.get("fields", {}))
    payload = fields.pop("payload", None)
    if what == "request":
        r = c.request(cmd["op"], payload, **fields)
        if cmd["op"] == "hello" and r.status == "OK":
            c.info, c.session = r, r["session"]
        if r.payload is not None:
            r["payload"] = r.payload
        return plain(dict(r))
    if what == "send":
        return {"id": c.send(cmd["op"], payload, **fields)}
    if what == "recv":
        return plain(dict(c.recv(cmd.get("id"))))
    if what == "put":
        data = kvf.pattern(cmd["size"], cmd["seed"])
        return plain(dict(c.put(cmd["key"], data, **fields)))
    if what == "fill":
        buf = c.filled(kvf.pattern(cmd["size"], cmd["seed"]))
        return plain(dict(buf))
    if what == "region":
        fd = os.memfd_create("engine", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, cmd["size"])
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return plain(dict(c.ok("register", fd=fd, size=cmd["size"])))
    if what == "get":
        r = c.ok("get", **fields)
        good = c.bytes_of(r) == kvf.pattern(r["size"], cmd["seed"])
        return dict(plain(dict(r)), good=good)
    raise ValueError(f"unknown command {what}")


def main():
    routing_id = sys.argv[2].encode() if len(sys.argv) > 2 else None
    c = kvf.Client(sys.argv[1], routing_id=routing_id)
    for line in sys.stdin:
        try:
            out = act(c, json.loads(line))
        except Exception as e:  # told to the test, which judges it
            out = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(out), flush=True)


main()
