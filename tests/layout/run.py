"""tests/layout/run.py KVFERRY [N [SEED]]: cases through `kvferry plan`.

First the committed cases, then N random valid ones, judged byte by byte by
model.py (every third of the WIDE kind), and N/2 with one fault or two, which
must be refused for it, or for the first of them in the order of refusals.
"""
import copy
import glob
import os
import random
import subprocess
import sys
import time

import faults
import gen
import model

HERE = os.path.dirname(os.path.abspath(__file__))


def plan(exe, text):
    """(reads, notes, kind of a refusal or None)"""
    r = subprocess.run([exe, "plan"], input=text.encode(), timeout=20,
                       capture_output=True, check=False)
    lines = r.stdout.decode().splitlines()
    if r.returncode != 0 or not lines or lines[-1] != "END":
        raise model.Wrong(f"exit {r.returncode}: {r.stderr.decode()[-2000:]}")
    reads, notes, err = [], [], None
    for line in lines[:-1]:
        w = line.split()
        if w[0] == "R":
            reads.append(tuple(map(int, w[1:])))
        elif w[0] == "N":
            notes.append(tuple(map(int, w[1:])))
        elif w[0] == "ERR" and len(lines) == 2:
            err = w[1]
        else:
            raise model.Wrong(f"a line that cannot be: {line}")
    return reads, notes, err


def read_case(text):
    """the same shape as gen.make gives, from a case's text"""
    case = {"blocks": {"P": {}, "D": {}}}
    for line in text.splitlines():
        w = line.split()
        if w[0] == "n_tokens":
            case["n"] = int(w[1])
        elif w[0] == "side":
            s = dict(zip(w[2::2], w[3::2]))
            for k in ("tp", "pp", "bs", "ppl", "nblocks", "shared"):
                s[k] = int(s[k])
            s.update(groups=[], layers=[])
            case[w[1]] = s
        elif w[0] == "group":
            case[w[1]]["groups"].append((w[3], int(w[4])))
            case["groups"] = case[w[1]]["groups"]
        elif w[0] == "layer":
            c = w[8:]
            case[w[1]]["layers"].append({
                "name": w[3], "stage": int(w[4]), "group": int(w[5]),
                "kind": w[6], "views": {},
                "comps": [(c[i], int(c[i + 1]), int(c[i + 2]))
                          for i in range(0, len(c), 3)]})
        elif w[0] == "view":
            case[w[1]]["layers"][int(w[3])]["views"][w[4]] = tuple(
                map(int, w[5:9]))
        elif w[0] == "blocks":
            case["blocks"][w[1]][int(w[2])] = (int(w[3]),
                                               list(map(int, w[5:])))
    return case


def committed(exe):
    """each against the model, and against its plan as it was looked over"""
    bad = 0
    for path in sorted(glob.glob(os.path.join(HERE, "cases", "*.case"))):
        with open(path, encoding="utf-8") as f:
            text = f.read()
        with open(path[:-5] + ".plan", encoding="utf-8") as f:
            expect = f.read()
        got = subprocess.run([exe, "plan", "--case", path], timeout=20,
                             capture_output=True, text=True, check=False)
        try:
            if got.stdout != expect:
                raise model.Wrong("the plan is not the one kept beside it")
            reads, notes, err = plan(exe, text)
            if err is None:
                model.judge(read_case(text), reads, notes)
        except model.Wrong as e:
            bad += 1
            print(f"FAILED {os.path.basename(path)}: {e}")
    return bad


def judge_can_say_no(case, reads, notes):
    """spoiled plans must not pass, or the judge is worth nothing"""
    spoiled = []
    if notes:
        spoiled.append((reads, notes[1:]))
    if reads:
        spoiled.append((reads + reads[:1], notes))
        spoiled.append(([r[:3] + (r[3] + 1,) + r[4:] for r in reads], notes))
        spoiled.append(([r[:5] + (r[5] + 1,) + r[6:] for r in reads], notes))
        spoiled.append(([], notes))
    for r, n in spoiled:
        try:
            model.judge(case, r, n)
        except model.Wrong:
            continue
        raise model.Wrong("the judge let a spoiled plan pass")


def main():
    exe = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else random.randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    bad = committed(exe)
    kinds = {}
    for i in range(count + count // 2):
        rng = random.Random(f"{seed}:{i}")
        case = gen.make(rng, gen.WIDE if i % 3 == 2 else gen.NARROW)
        want = None
        text = gen.text(case)
        try:
            if i < count:
                reads, notes, err = plan(exe, text)
                if err is not None:
                    raise model.Wrong(f"refused: {err}")
                model.judge(case, reads, notes)
                if i % 10 == 0:
                    judge_can_say_no(case, reads, notes)
            else:
                broken = copy.deepcopy(case)
                want = (faults.spoil_twice if i % 2 else faults.spoil)(
                    rng, broken)
                if want is None:
                    continue
                text = gen.text(broken)
                _, _, err = plan(exe, text)
                kinds[want] = kinds.get(want, 0) + 1
                if err != want:
                    raise model.Wrong(f"{err} instead of {want}")
        except model.Wrong as e:
            bad += 1
            print(f"FAILED case {i} of seed {seed}: {e}\n{text}")
            if bad > 5:
                break
    print(f"{count} valid cases, refusals: "
          + ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())))
    print(f"{bad} failed, {time.monotonic() - began:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
