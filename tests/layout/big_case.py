"""Prints a large case: 80 layers, 8 KV heads of 128 bf16, 8,192 tokens.

big_case.py [P_TP D_TP [P_BS D_BS [ORDER KV [ids|ascending [row]]]]]
Defaults: 4 4 16 16 HND packed ids. `ids`: random block ids; `row`: all layers
of a block side by side in one region.
"""
import random
import sys

LAYERS, HEADS, E, N = 80, 8, 256, 8192


def main():
    a = sys.argv[1:] + [None] * 8
    tp = {"P": int(a[0] or 4), "D": int(a[1] or 4)}
    bs = {"P": int(a[2] or 16), "D": int(a[3] or 16)}
    order, kv = a[4] or "HND", a[5] or "packed"
    row = a[7] == "row"
    out = ["KVCASE 1", "id big", "tier big", "seed 1", f"n_tokens {N}"]
    rng = random.Random(1)
    for w in "PD":
        n = 2 * N // bs[w]
        own = max(1, HEADS // tp[w])
        page = own * bs[w] * E * (1 if kv == "split" else 2)
        parts = ["k", "v"] if kv == "split" else ["kv"]
        total = page * len(parts) * LAYERS
        out.append(f"side {w} tp {tp[w]} pp 1 bs {bs[w]} ppl 1 nblocks {n} "
                   f"order {order} kv {kv} shared 0 ngroups 1 nlayers {LAYERS}")
        out.append(f"group {w} 0 full 0")
        out += [f"layer {w} {i} layer{i} 0 0 attn 2 k {HEADS} {E} v {HEADS} "
                f"{E}" for i in range(LAYERS)]
        views = [(i, p) for i in range(LAYERS) for p in parts]
        if row:
            out.append(f"region {w} 0 0 {n * total}")
        else:
            out += [f"region {w} 0 {k} {n * page}" for k in range(len(views))]
        out += [f"view {w} 0 {i} {p} " + (f"0 {k * page} {total} {page}" if row
                                         else f"{k} 0 {page} {page}")
                for k, (i, p) in enumerate(views)]
    for w in "PD":
        n = N // bs[w]
        ids = list(range(n)) if a[6] == "ascending" else \
            rng.sample(range(2 * n), n)
        out.append(f"blocks {w} 0 0 {n} " + " ".join(map(str, ids)))
    print("\n".join(out + ["end"]))


if __name__ == "__main__":
    main()
