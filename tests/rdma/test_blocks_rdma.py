"""One guest, a daemon for each rank: random KV layouts over rdma.

The cases are those of tests/layout/gen.py; what every byte of every rank must
be in the end is worked out here by tests/layout/model.py, which shares no
formula with the daemons. blocks.c is the engines.
"""
import os
import random
import sys
import time
import zlib

import pytest
import vm_daemon
from vm_daemon import ENV, SLOW, TRANSPORT

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(
    os.path.abspath(__file__))), "layout"))
import gen  # noqa: E402
import model  # noqa: E402

SENDERS, RECEIVERS = 4, 2
BATCH = 5  # cases that go to the guest at a time
FILL = "ee"  # what nobody may change at a receiver
REST = "11"  # what nobody may read at a sender


def value(label):
    return f"{zlib.crc32(repr(label).encode()) & 0xff:02x}"


def rank_words(case, which, rank):
    """Regions with their bytes, and views, of one rank."""
    side = case[which]
    stage, tp_rank = divmod(rank, side["tp"])
    mine = [(i, x) for i, x in enumerate(side["layers"])
            if x["stage"] == stage]
    want = {i: model.wanted(case, x) for i, x in mine}
    used = sorted({v[0] for _, x in mine for v in x["views"].values()})
    held = {i: [REST if which == "P" else FILL]
            * max(1, side["regions"][stage][i]) for i in used}
    labels = model.label_memory(case, which, tp_rank, stage)
    wanted = 0
    for (region, at), label in labels.items():
        counts = label[3] in want[label[0]]
        wanted += counts
        held[region][at] = value(label) if which == "P" or counts else ".."
    out = [wanted, len(labels), len(used)]
    for i in used:
        out += [len(held[i]), "".join(held[i])]
    views = [(i, part, used.index(v[0]), *v[1:])
             for i, x in mine for part, v in x["views"].items()]
    return out + [len(views)] + [w for v in views for w in v]


def side_words(case, which):
    s = case[which]
    out = [s[k] for k in ("tp", "pp", "bs", "ppl", "nblocks", "order", "kv")]
    out += [int(s["shared"]), len(s["groups"])]
    out += [w for g in s["groups"] for w in g]
    out.append(len(s["layers"]))
    for x in s["layers"]:
        out += [x["name"], x["group"], x["kind"], len(x["comps"])]
        out += [w for c in x["comps"] for w in c]
    for first, ids in case["blocks"][which]:
        out += [first, len(ids), *ids]
    for rank in range(s["tp"] * s["pp"]):
        out += rank_words(case, which, rank)
    return out


def words(case, name, by_handle):
    out = ["case", name, case["n"], int(by_handle)]
    out += side_words(case, "P") + side_words(case, "D")
    return " ".join(map(str, out)) + "\n"


def draw(rng):
    """(case, how many were too big for the ranks there are)"""
    too_big = 0
    while True:
        case = gen.make(rng)
        n = {w: case[w]["tp"] * case[w]["pp"] for w in "PD"}
        if n["P"] <= SENDERS and n["D"] <= RECEIVERS and \
                all(case[w]["pp"] <= len(case[w]["layers"]) for w in "PD"):
            return case, too_big
        too_big += 1


@pytest.fixture
def ranks(guest, start):
    small = {"connector": {"memory_pool_size": "16MiB"}}
    senders = [start(guest, 0, small, rank=r) for r in range(SENDERS)]
    receivers = [start(guest, 1, small, rank=r) for r in range(RECEIVERS)]
    for d in receivers:
        for s in senders:
            d.knows(s)
    vm_daemon.start_all(*senders, *receivers)
    return guest


@pytest.mark.sanitized
def test_random_layouts(ranks):
    """Seeded by KVF_SEED, for KVF_CASES seconds."""
    seed = int(os.environ.get("KVF_SEED", random.randrange(1 << 30)))
    print("KVF_SEED", seed)
    rng = random.Random(seed)
    end = time.monotonic() + float(os.environ.get("KVF_CASES", 10))
    done = left_out = 0
    while done < 2 * BATCH or time.monotonic() < end:
        cases, text = [], ""
        for _ in range(BATCH):
            case, too_big = draw(rng)
            cases.append(case)
            left_out += too_big
            text += words(case, f"seed{seed}.{done}", rng.random() < 0.5)
            done += 1
        status, said = ranks.run(
            f"{ENV}cat >/tmp/cases <<'END'\n{text}END\n"
            f"blocks /tmp/cases {TRANSPORT}", 40 * SLOW)
        print(said.strip())
        if status != 0 or f"BLOCKS OK cases={BATCH} " not in said:
            for i, case in enumerate(cases):
                print(gen.text(case, f"seed{seed}.{done - BATCH + i}"))
            raise AssertionError(said)
    print(done, "cases;", left_out, "drawn ones left out: more than",
          SENDERS, "senders or", RECEIVERS, "receivers, or a stage without "
          "layers")

