"""Brute force: every byte of every rank's memory is a labelled cell.

Shares no formula with the planner. Units are dealt out one by one, pages are
walked byte by byte in their order, and a plan is judged by what the bytes are
after it was carried out: the laws of docs/LAYOUTS.md. Failure: Wrong, with
the law that was broken.
"""


class Wrong(Exception):
    pass


def deal(units, tp):
    """units of each rank, dealt like cards that must all be used evenly"""
    hands = [[] for _ in range(tp)]
    if units >= tp:
        it = iter(range(units))
        for r in range(tp):
            while len(hands[r]) < units // tp:
                hands[r].append(next(it))
        assert next(it, None) is None
    else:
        r = 0
        for u in range(units):
            for _ in range(tp // units):
                hands[r].append(u)
                r += 1
        assert r == tp
    return hands


def windows(tp_p, tp_d):
    """for each D rank the P ranks that share one of tp_p*tp_d thin slices"""
    out = [set() for _ in range(tp_d)]
    for thin in range(tp_p * tp_d):
        out[thin // tp_p].add(thin // tp_d)
    return out


def walk_page(side, layer, part, hand):
    """(component, unit, token in block) of every byte of a page, in order"""
    comps = [(c, e) for c, (_, _, e) in enumerate(layer["comps"])]
    if layer["kind"] == "ssm":
        for c, e in comps:
            for u in hand[c]:
                for _ in range(e):
                    yield c, u, None
        return
    if part == "k":
        comps = comps[:1]
    elif part == "v":
        comps = comps[1:]
    blocks = [[x] for x in comps]
    if part == "kv" and side["kv"] == "packed":
        blocks = [comps]
    for block in blocks:
        heads = hand[block[0][0]]
        slots = ([(u, n) for u in heads for n in range(side["bs"])]
                 if side["order"] == "HND" else
                 [(u, n) for n in range(side["bs"]) for u in heads])
        for u, n in slots:
            for c, e in block:
                for _ in range(e):
                    yield c, u, n


def label_memory(case, which, tp_rank, stage):
    """{(region, offset): (layer, comp, unit, position, nth byte)} of the
    request's own blocks; position is a token, or the n-th SSM slot"""
    side = case[which]
    out = {}
    for li, layer in enumerate(side["layers"]):
        if layer["stage"] != stage:
            continue
        hand = [deal(u, side["tp"])[tp_rank] for _, u, _ in layer["comps"]]
        ssm = layer["kind"] == "ssm"
        first, ids = case["blocks"][which][layer["group"]]
        for part, (region, off0, stride, _) in layer["views"].items():
            token = first * side["bs"] * side["ppl"]
            for nth, bid in enumerate(ids):
                for k in range(1 if ssm else side["ppl"]):
                    at = off0 + (bid if ssm else bid * side["ppl"] + k) * stride
                    count = {}
                    for c, u, n in walk_page(side, layer, part, hand):
                        pos = nth if ssm else token + n
                        key = (li, c, u, pos)
                        count[key] = count.get(key, -1) + 1
                        if (region, at) in out:
                            raise Wrong("the case itself lies on itself")
                        out[region, at] = key + (count[key],)
                        at += 1
                    token += side["bs"]
    return out


def wanted(case, layer):
    g = layer["group"]
    first, ids = case["blocks"]["D"][g]
    kind, window = case["groups"][g]
    if kind == "ssm":
        return set(range(len(ids)))
    if not ids:
        return set()
    d = case["D"]
    tokens = range(first * d["bs"] * d["ppl"], case["n"])
    if kind == "swa":
        tokens = [t for t in tokens if case["n"] - t < window]
    return set(tokens)


def judge(case, reads, notes):
    """reads: (d, p, p_region, p_off, d_region, d_off, len); notes: (d, p)"""
    P, D = case["P"], case["D"]
    win = windows(P["tp"], D["tp"])
    p_mem, told = {}, set()
    if len(set(notes)) != len(notes):
        raise Wrong("a notification is there twice")
    for d in range(D["tp"] * D["pp"]):
        sd, rd = divmod(d, D["tp"])
        mine = [i for i, x in enumerate(D["layers"]) if x["stage"] == sd]
        for i in mine:
            for p in win[rd]:
                told.add((d, P["layers"][i]["stage"] * P["tp"] + p))
        d_mem = label_memory(case, "D", rd, sd)
        want = {i: wanted(case, D["layers"][i]) for i in mine}
        written, read = {}, {}
        for r in reads:
            if r[0] != d:
                continue
            _, p, p_reg, p_off, d_reg, d_off, n = r
            if n < 1:
                raise Wrong("an empty read")
            if (d, p) not in told:
                raise Wrong(f"D{d} reads from P{p}, out of its window")
            if p not in p_mem:
                sp, rp = divmod(p, P["tp"])
                p_mem[p] = label_memory(case, "P", rp, sp)
            for k in range(n):
                src = p_mem[p].get((p_reg, p_off + k))
                if src is None:
                    raise Wrong(f"{r}: byte {k} is not the request's on P")
                dst = (d_reg, d_off + k)
                if dst not in d_mem:
                    raise Wrong(f"{r}: byte {k} is not the request's on D")
                if dst in written:
                    raise Wrong(f"{r}: byte {k} is written twice")
                written[dst] = src
                key = (src[0], src[1], p)
                if src[3] not in want.get(src[0], ()):
                    read[key] = read.get(key, 0) + 1
        for at, label in d_mem.items():
            if label[3] in want[label[0]] and written.get(at) != label:
                raise Wrong(f"D{d} {at} should be {label}, is "
                            f"{written.get(at)}")
        block = max(P["bs"], D["bs"])
        for (li, c, p), extra in read.items():
            _, units, e = D["layers"][li]["comps"][c]
            own = len(deal(units, D["tp"])[rd])
            if extra > own * block * e:
                raise Wrong(f"D{d} reads {extra} bytes in vain from P{p}")
    if told != set(notes):
        raise Wrong(f"told {sorted(set(notes))}, should be {sorted(told)}")
