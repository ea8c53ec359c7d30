"""Random planning cases, valid ones and ones with a known fault.

WIDE draws what stages seldom are: tp up to 24, other numbers of heads, several
kernel blocks in a logical one on both sides, windows of one token, tokens that
no block holds.
"""

NARROW = {"tp": 12, "heads": [1, 2, 3, 4, 6, 8], "window": 24, "tokens": 40,
          "ppl": [1, 1, 2, 3], "pp": [1, 1, 2, 3], "scale": [1, 1, 2, 4]}
WIDE = {"tp": 24, "heads": [1, 5, 7, 10, 12, 16, 18, 24], "window": 3,
        "tokens": 90, "ppl": [1, 2, 3, 4], "pp": [1, 2, 4, 5],
        "scale": [1, 3, 5, 8]}


def divisors(n):
    return [x for x in range(1, n + 1) if n % x == 0]


def tp_for(rng, units, most):
    """a tp that is legal for all of them"""
    ok = [t for t in range(1, most + 1)
          if all(u % t == 0 if t <= u else t % u == 0 for u in units)]
    return rng.choice(ok)


def make_layers(rng, kinds, heads):
    layers = []
    shards = rng.choice([1, 2, 4])
    for g, (kind, _) in enumerate(kinds):
        for _ in range(rng.randint(1, 3)):
            if kind == "ssm":
                k = "ssm"
                comps = [("c%d" % i, rng.choice([1, shards, 2 * shards]),
                          rng.randint(1, 6)) for i in range(rng.randint(1, 4))]
            elif rng.random() < 0.25:
                k, comps = "mla", [("k", 1, rng.randint(1, 6))]
            else:
                k, e = "attn", rng.randint(1, 4)
                f = e if rng.random() < 0.7 else rng.randint(1, 4)
                comps = [("k", heads, e), ("v", heads, f)]
            layers.append({"kind": k, "group": g, "comps": comps})
    rng.shuffle(layers)
    for i, x in enumerate(layers):
        x["name"] = f"l{i}"
    return layers


def cut(n, pp):
    out = []
    for s in range(pp):
        out += [s] * (n // pp + (1 if s < n % pp else 0))
    return out


def page_of(side, layer, part):
    size = 0
    for i, (_, units, e) in enumerate(layer["comps"]):
        if part == "k" and i == 1 or part == "v" and i == 0:
            continue
        own = max(1, units // side["tp"])
        size += own * e * (1 if layer["kind"] == "ssm" else side["bs"])
    return size


def parts_of(side, layer):
    if layer["kind"] != "attn":
        return ["lat" if layer["kind"] == "mla" else "ssm"]
    return ["k", "v"] if side["kv"] == "split" else ["kv"]


def place(rng, side, groups):
    """views: own regions, one interleaved row per block, one after another in
    one region, or a pool where the groups lie on each other"""
    ways = ["own", "after", "row"] + (["pool"] * 2 if side["shared"] else [])
    way = rng.choice(ways)
    regions = {}
    for s in range(side["pp"]):
        views = [(x, part) for x in side["layers"] if x["stage"] == s
                 for part in parts_of(side, x)]
        if way == "pool" or (way == "row"):
            row = lay_row(rng, side, views, way == "pool", len(groups))
            regions[s] = [row]
            continue
        regions[s] = []
        at = 0
        for x, part in views:
            page = page_of(side, x, part)
            stride = page + rng.choice([0, 0, 0, 3])
            n = side["nblocks"] * (1 if x["kind"] == "ssm" else side["ppl"])
            if way == "own":
                at = rng.choice([0, 5])
                x["views"][part] = (len(regions[s]), at, stride, page)
                regions[s].append(at + n * stride)
            else:
                x["views"][part] = (0, at, stride, page)
                at += n * stride
                regions[s] = [at]
    side["regions"] = regions


def lay_row(rng, side, views, pool, n_groups):
    """all views in one region, block by block; the length of the region"""
    fill = [0] * n_groups
    for x, part in views:
        g = x["group"] if pool else 0
        page = page_of(side, x, part)
        # an SSM slot is as long as a logical block of the pool
        x["views"][part] = [0, fill[g], x["kind"] == "ssm", page]
        fill[g] += page
    n = side["ppl"]
    attn = max([f for f, (k, _) in zip(fill, side["groups"]) if k != "ssm"]
               if pool else fill, default=0)
    slot = max(fill)
    while attn * n < slot:
        attn += 1
    attn += rng.choice([0, 0, 4])
    for x, part in views:
        r, off, ssm, page = x["views"][part]
        x["views"][part] = (r, off, attn * n if ssm else attn, page)
    return attn * n * side["nblocks"]


def pick_ids(rng, side, counts):
    """ids of every group; from one pool when shared"""
    pool = list(range(side["nblocks"]))
    out = []
    for n in counts:
        if not side["shared"]:
            pool = list(range(side["nblocks"]))
        way = rng.random()
        if way < 0.5:
            ids = rng.sample(pool, n)
        else:
            ids = pool[:n]
            if way > 0.8:
                ids.reverse()
        out.append(ids)
        pool = [x for x in pool if x not in ids]
    return out


def span(rng, side, lo, hi, spare):
    """(first, count) of blocks that hold tokens lo to hi"""
    size = side["bs"] * side["ppl"]
    first = lo // size
    if spare and first and rng.random() < 0.5:
        first = rng.randint(0, first)
    return first, max(-(-hi // size), first) - first + (
        rng.randint(0, 2) if spare else 0)


def make(rng, r=NARROW):
    kinds = rng.choice([["full"], ["full"], ["full", "swa"], ["full", "ssm"],
                        ["swa"], ["full", "swa", "ssm"], ["ssm"]])
    groups = [(k, rng.randint(1, r["window"]) if k == "swa" else 0)
              for k in kinds]
    layers = make_layers(rng, groups, rng.choice(r["heads"]))
    units = [u for x in layers for _, u, _ in x["comps"]]
    n = rng.randint(0 if r is WIDE else 1, r["tokens"])
    case = {"n": n, "groups": groups, "blocks": {}}
    base = rng.choice([1, 2, 3, 4, 5])
    scale = rng.choice(r["scale"])
    big = rng.randint(0, 1)
    for i, w in enumerate("PD"):
        pp = rng.choice(r["pp"])
        side = {"tp": tp_for(rng, units, r["tp"]), "pp": pp,
                "bs": base * (scale if i == big else 1),
                "ppl": rng.choice(r["ppl"]),
                "order": rng.choice(["HND", "NHD"]),
                "kv": rng.choice(["split", "blocks_first", "packed"]),
                "shared": rng.random() < 0.5, "groups": groups}
        side["layers"] = [dict(x, comps=list(x["comps"]), views={}, stage=s)
                          for x, s in zip(layers, cut(len(layers), pp))]
        case[w] = side
    if rng.random() < 0.4:  # the same pages on both sides
        for k in ("tp", "bs", "ppl", "order", "kv"):
            case["D"][k] = case["P"][k]
    give_blocks(rng, case)
    for w in "PD":
        place(rng, case[w], groups)
    return case


def give_blocks(rng, case):
    P, D, n = case["P"], case["D"], case["n"]
    size = {w: case[w]["bs"] * case[w]["ppl"] for w in "PD"}
    plan = {"P": [], "D": []}
    for kind, window in case["groups"]:
        if kind == "ssm":
            k = rng.randint(0, 2)
            plan["P"].append((0, k))
            plan["D"].append((0, k if rng.random() < 0.9 else 0))
            continue
        first = rng.randint(0, max(0, n // size["D"])) \
            if rng.random() < 0.4 else 0
        lo = first * size["D"]
        if rng.random() < 0.1:
            plan["D"].append((first, 0))
            plan["P"].append(span(rng, P, 0, n, True))
            continue
        if kind == "swa" and rng.random() < 0.5:
            first = max(0, n - window + 1, lo) // size["D"]
            lo = first * size["D"]
        f, c = span(rng, D, lo, n, False)
        plan["D"].append((f, c + rng.randint(0, 2)))
        if kind == "swa":
            lo = max(lo, n - window + 1)
        plan["P"].append(span(rng, P, lo, n, True))
    for w in "PD":
        counts = [c for _, c in plan[w]]
        case[w]["nblocks"] = rng.randint(0, 3) + max(
            1, sum(counts) if case[w]["shared"] else max(counts))
        case["blocks"][w] = [
            (f, ids) for (f, _), ids in
            zip(plan[w], pick_ids(rng, case[w], counts))]


def text(case, name="random"):
    out = ["KVCASE 1", f"id {name}", "tier random", "seed 0",
           f"n_tokens {case['n']}"]
    for w in "PD":
        s = case[w]
        out.append(f"side {w} tp {s['tp']} pp {s['pp']} bs {s['bs']} ppl "
                   f"{s['ppl']} nblocks {s['nblocks']} order {s['order']} kv "
                   f"{s['kv']} shared {int(s['shared'])} ngroups "
                   f"{len(s['groups'])} nlayers {len(s['layers'])}")
        for i, (kind, window) in enumerate(s["groups"]):
            out.append(f"group {w} {i} {kind} {window}")
        for i, x in enumerate(s["layers"]):
            comps = " ".join(f"{a} {b} {c}" for a, b, c in x["comps"])
            out.append(f"layer {w} {i} {x['name']} {x['stage']} {x['group']} "
                       f"{x['kind']} {len(x['comps'])} {comps}")
        for stage, table in s["regions"].items():
            for i, length in enumerate(table):
                out.append(f"region {w} {stage} {i} {length}")
        for i, x in enumerate(s["layers"]):
            for part, v in x["views"].items():
                out.append(f"view {w} {x['stage']} {i} {part} "
                           + " ".join(map(str, v)))
    for w in "PD":
        for g, (first, ids) in enumerate(case["blocks"][w]):
            out.append(f"blocks {w} {g} {first} {len(ids)} "
                       + " ".join(map(str, ids)))
    return "\n".join(out + ["end", ""])
