"""One fault in a valid case, and the reason for which it must be refused."""


def attn_group(case, g):
    return case["groups"][g][0] != "ssm"


def tp(rng, c):
    c[rng.choice("PD")][rng.choice(["tp", "pp"])] = rng.choice([0, -1, 99999])
    return "E_TP"


def layout(rng, c):
    c[rng.choice("PD")][rng.choice(["order", "kv"])] = "NEW"
    return "E_LAYOUT"


def name(rng, c):
    rng.choice(c["D"]["layers"])["name"] = "other"
    return "E_LAYERS"


def group(rng, c):
    g = rng.randrange(len(c["groups"]))
    side = rng.choice("PD")
    c[side]["groups"] = list(c["groups"])
    kind, window = c["groups"][g]
    if kind == "ssm":
        return None
    c[side]["groups"][g] = ("swa", window + 1)
    return "E_GROUPS"


def geometry(rng, c):
    x = rng.choice(c["D"]["layers"])
    a, b, e = x["comps"][-1]
    x["comps"][-1] = (a, b, e + 1)
    return "E_SSM_SHAPE" if x["kind"] == "ssm" else "E_GEOMETRY"


def heads(rng, c):
    for i, x in enumerate(c["P"]["layers"]):
        if x["kind"] == "attn":
            for w in "PD":
                y = c[w]["layers"][i]
                y["comps"] = [(a, 13 * u + 1, e) for a, u, e in y["comps"]]
            tps = [c[w]["tp"] for w in "PD"]
            units = y["comps"][0][1]
            if all(units % t == 0 if t <= units else t % units == 0
                   for t in tps):
                return None
            for w in "PD":  # pages large enough for whatever it may be
                for part in c[w]["layers"][i]["views"]:
                    r, o, s, p = c[w]["layers"][i]["views"][part]
                    c[w]["layers"][i]["views"][part] = (r, o, s, p * 99)
            return "E_HEADS"
    return None


def ssm_shape(rng, c):
    for i, x in enumerate(c["D"]["layers"]):
        a, b, e = x["comps"][0]
        if x["kind"] != "ssm":
            continue
        if e == 1:
            return None
        x["comps"][0] = (a, b, e - 1)  # still fits in its page
        return "E_SSM_SHAPE"
    return None


def block_size(rng, c):
    if any(x["kind"] != "ssm" for x in c["P"]["layers"]):
        return None
    c["P"]["bs"], c["D"]["bs"] = 6, 4
    return "E_BLOCK_SIZE"


def stride(rng, c):
    x = rng.choice(c[rng.choice("PD")]["layers"])
    part = rng.choice(list(x["views"]))
    r, o, _, p = x["views"][part]
    x["views"][part] = (r, o, p - 1, p)
    return "E_STRIDE"


def overflow(rng, c):
    x = rng.choice(c[rng.choice("PD")]["layers"])
    part = rng.choice(list(x["views"]))
    r, o, s, p = x["views"][part]
    x["views"][part] = (r, rng.choice([2**63 - 1, 2**63, 2**70]), s, p)
    return "E_OVERFLOW"


def region(rng, c):
    s = c[rng.choice("PD")]
    stage = rng.choice([x["stage"] for x in s["layers"]])
    i = rng.randrange(len(s["regions"][stage]))
    used = [v for x in s["layers"] if x["stage"] == stage
            for v in x["views"].values() if v[0] == i]
    s["regions"][stage][i] = max(
        v[1] + (s["nblocks"] - 1) * v[2] for v in used)
    return "E_REGION"


def some_list(rng, c, least=1):
    lists = [(w, g) for w in "PD" for g in range(len(c["groups"]))
             if len(c["blocks"][w][g][1]) >= least]
    return rng.choice(lists) if lists else None


def block_range(rng, c):
    at = some_list(rng, c)
    if at is None:
        return None
    ids = c["blocks"][at[0]][at[1]][1]
    ids[rng.randrange(len(ids))] = rng.choice([c[at[0]]["nblocks"], -1, 2**66])
    return "E_BLOCK_RANGE"


def block_dup(rng, c):
    at = some_list(rng, c, 2)
    if at is None:
        return None
    ids = c["blocks"][at[0]][at[1]][1]
    ids[-1] = ids[0]
    return "E_BLOCK_DUP"


def slots(rng, c):
    for g, (kind, _) in enumerate(c["groups"]):
        if kind == "ssm" and len(c["blocks"]["D"][g][1]) > 0:
            c["blocks"]["P"][g][1].pop()
            return "E_SSM_SLOTS"
    return None


def short(rng, c, w, kind):
    for g in range(len(c["groups"])):
        first, ids = c["blocks"][w][g]
        size = c[w]["bs"] * c[w]["ppl"]
        d_first, d_ids = c["blocks"]["D"][g]
        d_size = c["D"]["bs"] * c["D"]["ppl"]
        if not attn_group(c, g) or not d_ids or d_first * d_size >= c["n"]:
            continue
        group, window = c["groups"][g]
        if group == "swa" and window < 2:
            continue  # wants no token: nothing is too short
        keep = (c["n"] - 1) // size - first
        if keep < (1 if w == "D" else 0):
            continue
        c["blocks"][w][g] = (first, ids[:keep])
        return kind
    return None


def local_short(rng, c):
    return short(rng, c, "D", "E_LOCAL_SHORT")


def blocks_short(rng, c):
    return short(rng, c, "P", "E_BLOCKS_SHORT")


ALL = [tp, layout, name, group, geometry, heads, ssm_shape, block_size,
       stride, overflow, region, block_range, block_dup, slots,
       local_short, blocks_short]


def spoil(rng, case):
    return rng.choice(ALL)(rng, case)


ORDER = ["E_TP", "E_LAYOUT", "E_LAYERS", "E_GROUPS", "E_GEOMETRY", "E_HEADS",
         "E_SSM_SHAPE", "E_BLOCK_SIZE", "E_STRIDE", "E_OVERFLOW", "E_REGION",
         "E_BLOCK_RANGE", "E_BLOCK_DUP", "E_SSM_SLOTS", "E_LOCAL_SHORT",
         "E_BLOCKS_SHORT"]
SHORTENS = {slots, local_short, blocks_short}


def spoil_twice(rng, case):
    """the first of two faults in the order; None where one may undo the
    other: a list that is cut loses ids, a component is changed back"""
    a, b = rng.sample(ALL, 2)
    if {a, b} == {geometry, ssm_shape} or (
            {a, b} & SHORTENS and {a, b} & {block_range, block_dup}) or \
            {a, b} == {block_range, block_dup}:
        return None
    kinds = [a(rng, case), b(rng, case)]
    return None if None in kinds else min(kinds, key=ORDER.index)
