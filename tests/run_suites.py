"""Builds kvferry and runs its test suites; called by tests/run.

Happy path: two builds (release; ASan+UBSan), then each suite under its own
deadline, its counts read from meson's JSON log or pytest's JUnit file, every
skip printed with its reason, and one last line with the sums. The suites of
the test guests, whose emulated processors keep one core busy, run beside the
others, which mostly wait.
Failure modes: a build that fails, a suite that ends without a readable result
and a suite that passes its deadline each count as one failure and are named.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ET

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PY = "/usr/bin/python3"
BUILDS = {
    "release": ["--buildtype=release"],
    "asan": ["--buildtype=debugoptimized", "-Db_sanitize=address,undefined",
             "-Db_lundef=false"],
}
# suite: (kind, build, seconds); meson suites have the name before the colon.
SUITES = {
    "lint": ("meson", "release", 180),
    "unit": ("meson", "release", 180),
    "unit:asan": ("meson", "asan", 240),
    "sim": ("meson", "release", 240),
    "sim:asan": ("meson", "asan", 300),
    "conformance": ("meson", "release", 240),
    "conformance:asan": ("meson", "asan", 300),
    "layout": ("meson", "release", 120),
    "layout:asan": ("meson", "asan", 180),
    "fuzz": ("meson", "asan", 240),
    "integration": ("pytest", "release", 660),
    "integration:asan": ("pytest", "asan", 660),
    "python": ("pytest", "release", 300),
    "rdma": ("pytest", "release", 900),
    "rdma:asan": ("pytest", "asan", 900),
}
QUICK = ["lint", "unit:asan", "layout", "sim:asan", "conformance:asan",
         "integration", "python"]
SHARDS = {"rdma": 1}  # a guest has as many processors as this machine
BESIDE = ("rdma", "rdma:asan")  # one after the other, beside all others

AGAIN_MAX = 3  # failed tests of a shard that get a second run
SANITIZER = re.compile(r"(Address|Leak)Sanitizer|runtime error:")
SAYING = threading.Lock()


class Tally:
    """Counts of all suites, and what is to be run once more at the end."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.again = []  # (label, environment, pytest's name of a test)
        self.lock = threading.Lock()

    def add(self, passed, failed, skipped):
        with self.lock:
            self.passed += passed
            self.failed += failed
            self.skipped += skipped

    def fail(self, text):
        self.add(0, 1, 0)
        say(f"FAILED {text}")


def say(text):
    with SAYING:
        print(text, flush=True)


def build_dir(name):
    return os.path.join(ROOT, f"build-{name}")


def start(cmd, log, env=None):
    """A child in its own session, so that all of it can be ended."""
    return subprocess.Popen(cmd, cwd=ROOT, env=env, stdout=log,
                            stderr=subprocess.STDOUT,
                            stdin=subprocess.DEVNULL, start_new_session=True)


def finish(proc, until):
    """Exit status, or None when the deadline passed (and it was ended)."""
    try:
        return proc.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        pass
    for sig, grace in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(proc.pid, sig)
        except ProcessLookupError:
            break
        try:
            proc.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    return None


def run(cmd, seconds, env=None):
    """(status or None, output)"""
    with tempfile.TemporaryFile() as log:
        status = finish(start(cmd, log, env), time.monotonic() + seconds)
        log.seek(0)
        return status, log.read().decode(errors="replace")


def tail(text, lines=40):
    return "\n".join("    " + x for x in text.splitlines()[-lines:])


def build(name, tally):
    d = build_dir(name)
    began = time.monotonic()
    steps = []
    if not os.path.exists(os.path.join(d, "build.ninja")):
        steps.append(["meson", "setup", d] + BUILDS[name])
    steps.append(["ninja", "-C", d])
    for cmd in steps:
        status, out = run(cmd, 600)
        if status == 0:
            continue
        why = "deadline passed" if status is None else f"exit {status}"
        say(tail(out))
        tally.fail(f"build of {name}: {why}: {' '.join(cmd)}")
        return False
    say(f"built {name} in {time.monotonic() - began:.0f} s")
    return True


def meson_tests(build_name, suite):
    out = subprocess.run(["meson", "introspect", "--tests",
                          build_dir(build_name)], cwd=ROOT,
                         capture_output=True, check=False).stdout
    try:
        tests = json.loads(out)
    except ValueError:
        return []
    return [t["name"] for t in tests
            if any(s.split(":")[-1] == suite for s in t["suite"])]


def cmocka_counts(text):
    """Cases inside one cmocka program, or None."""
    def last(word):
        got = re.findall(r"\[  %s *\] (\d+) test" % word, text)
        return sum(int(x) for x in got)
    if "[==========]" not in text:
        return None
    return last("PASSED"), last("FAILED"), last("SKIPPED")


def run_meson(label, suite, build_name, seconds, tally):
    names = meson_tests(build_name, suite)
    if not names:
        say(f"{label}: no such tests in this tree; nothing counted")
        return
    base = f"kvf-{suite}"
    log = os.path.join(build_dir(build_name), "meson-logs", base + ".json")
    if os.path.exists(log):
        os.unlink(log)
    env = dict(os.environ)
    env.setdefault("ASAN_OPTIONS", "detect_leaks=1:exitcode=23")
    env.setdefault("UBSAN_OPTIONS", "halt_on_error=1:print_stacktrace=1")
    status, out = run(["meson", "test", "-C", build_dir(build_name),
                       "--no-rebuild", "--suite", suite, "--logbase", base],
                      seconds, env)
    passed = failed = skipped = seen = 0
    try:
        with open(log, encoding="utf-8") as f:
            results = [json.loads(x) for x in f if x.strip()]
    except (OSError, ValueError):
        results = []
    for r in results:
        seen += 1
        text = (r.get("stdout") or "") + "\n" + (r.get("stderr") or "")
        counts = cmocka_counts(text)
        if r["result"] in ("OK", "EXPECTEDFAIL"):
            p, f, s = counts or (1, 0, 0)
            passed, failed, skipped = passed + p, failed + f, skipped + s
            for line in sorted(set(text.splitlines())):
                if "[  SKIPPED ]" in line and "test(s)" not in line:
                    say(f"SKIPPED {label} {r['name']}: {line.strip()}")
        elif r["result"] == "SKIP":
            skipped += 1
            lines = [x for x in text.splitlines() if x.strip()]
            reason = next((x for x in reversed(lines)
                           if "skip" in x.lower()),
                          lines[-1] if lines else "no reason printed")
            say(f"SKIPPED {label} {r['name']}: {reason.strip()}")
        else:
            failed += max(1, counts[1] if counts else 1)
            passed += counts[0] if counts else 0
            say(tail(text))
            say(f"FAILED {label} {r['name']}: {r['result']}")
    if seen < len(names):
        failed += len(names) - seen
        why = "deadline passed" if status is None else f"exit {status}"
        say(tail(out))
        say(f"FAILED {label}: {len(names) - seen} of {len(names)} test "
            f"programs gave no result ({why})")
    elif status != 0 and failed == 0:
        failed += 1
        say(tail(out))
        say(f"FAILED {label}: meson test ended with {status}")
    tally.add(passed, failed, skipped)
    say(f"{label}: {passed} passed, {failed} failed, {skipped} skipped")


def junit(path, label, tally_list):
    """Adds the counts of one JUnit file; False when there is none."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return False
    for case in root.iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag: child for child in case}
        if "failure" in kinds or "error" in kinds:
            tally_list[1] += 1
            bad = kinds.get("failure", kinds.get("error"))
            text = (bad.get("message") or "no message").splitlines()[0]
            say(f"FAILED {label} {name}: {text[:200]}")
        elif "skipped" in kinds:
            tally_list[2] += 1
            say(f"SKIPPED {label} {name}: {kinds['skipped'].get('message')}")
        else:
            tally_list[0] += 1
    return True


def failed_ids(xml):
    """What pytest calls the tests that failed; empty when it cannot be told,
    or when a sanitizer had something to say: that is no matter of time."""
    ids = []
    try:
        cases = ET.parse(xml).getroot().iter("testcase")
    except (OSError, ET.ParseError):
        return []
    for case in cases:
        bad = [x for x in case if x.tag in ("failure", "error")]
        if not bad:
            continue
        path = case.get("classname", "").replace(".", "/") + ".py"
        if not os.path.isfile(path) or any(
                SANITIZER.search(x.get("message", "") + (x.text or ""))
                for x in bad):
            return []
        ids.append(f"{path}::{case.get('name')}")
    return sorted(set(ids))


def second_chances(tally):
    """Some tests race real processes against a clock on a machine that others
    use, too. A few that failed run once more, when all else has ended; those
    that pass then are counted as passed and named, so that nobody takes them
    for quiet ones."""
    for label, env, one in tally.again:
        status, _ = run([PY, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                         one], 180, dict(env, KVF_SHARD=""))
        if status == 0:
            tally.add(1, -1, 0)
            say(f"PASSED AT THE SECOND RUN {label} {one}")


def left_out(build_name, quick, both):
    """Marks of tests that do not run in this build."""
    out = ["slow"] if quick or build_name == "asan" else []
    if build_name == "asan":
        out.append("release_only")
    elif both:
        out.append("sanitized")
    return out


def run_pytest(label, build_name, seconds, quick, both, tally):
    """A folder of pytest, mostly in two shards side by side: they wait. `both`:
    it also runs in the other build."""
    d = build_dir(build_name)
    folder = label.split(":")[0]
    out = left_out(build_name, quick, both)
    marks = " and ".join("not " + x for x in out)
    if out:
        say(f"{label}: left out on purpose: tests marked {', '.join(out)}"
            + (" (they run in the other build)" if both else ""))
    shards = []
    of = SHARDS.get(folder, 2)
    for i in range(of):
        env = dict(os.environ, KVF_BUILD=d, KVF_SHARD=f"{i}/{of}")
        xml = os.path.join(d, f"{folder}-{i}.xml")
        if os.path.exists(xml):
            os.unlink(xml)
        log = open(os.path.join(d, f"{folder}-{i}.log"), "w+b")
        cmd = [PY, "-m", "pytest", "-q", "-p", "no:cacheprovider",
               "--tb=short", f"--junit-xml={xml}", f"tests/{folder}"]
        if marks:
            cmd += ["-m", marks]
        shards.append((start(cmd, log, env), xml, log, env))
    until = time.monotonic() + seconds
    counts = [0, 0, 0]
    for i, (proc, _, _, _) in enumerate(shards):
        shards[i] = (finish(proc, until), *shards[i][1:])
    for i, (status, xml, log, env) in enumerate(shards):
        if not junit(xml, label, counts):
            counts[1] += 1
            why = "deadline passed" if status is None else f"exit {status}"
            say(f"FAILED {label}: shard {i} left no result ({why})")
        if status not in (0, 5):
            log.seek(0)
            say(tail(log.read().decode(errors="replace"), 150))
            ids = failed_ids(xml)
            if len(ids) <= AGAIN_MAX:
                tally.again += [(label, env, one) for one in ids]
        log.close()
    tally.add(*counts)
    say(f"{label}: {counts[0]} passed, {counts[1]} failed, "
        f"{counts[2]} skipped")


def run_lane(labels, wanted, built, quick, tally):
    """Suites, one after the other; `wanted`: all that run."""
    for label in labels:
        kind, build_name, seconds = SUITES[label]
        began = time.monotonic()
        if not built[build_name]:
            tally.fail(f"{label}: not run, the {build_name} build failed")
        elif kind == "meson":
            run_meson(label, label.split(":")[0], build_name, seconds, tally)
        else:
            both = sum(x.split(":")[0] == label.split(":")[0]
                       for x in wanted) > 1
            run_pytest(label, build_name, seconds, quick, both, tally)
        say(f"{label}: took {time.monotonic() - began:.0f} s")


def main():
    p = argparse.ArgumentParser(prog="tests/run")
    p.add_argument("--quick", action="store_true",
                   help="one build each, without the slow tests")
    p.add_argument("suite", nargs="*",
                   help="of: " + " ".join(SUITES))
    args = p.parse_args()
    wanted = []
    for s in args.suite:
        match = [x for x in SUITES
                 if x == s or (":" not in s and x.split(":")[0] == s)]
        if not match:
            p.error(f"no suite {s!r}; there are: {' '.join(SUITES)}")
        wanted += match
    wanted = wanted or (QUICK if args.quick else list(SUITES))
    if args.quick:
        wanted = [s for s in wanted if s in QUICK] or wanted

    tally = Tally()
    began = time.monotonic()
    built = {}
    for name in BUILDS:
        if any(SUITES[s][1] == name for s in wanted):
            built[name] = build(name, tally)
    beside = threading.Thread(target=run_lane, args=(
        [s for s in wanted if s in BESIDE], wanted, built, args.quick, tally))
    beside.start()
    run_lane([s for s in wanted if s not in BESIDE], wanted, built, args.quick,
             tally)
    beside.join()
    second_chances(tally)
    say(f"took {time.monotonic() - began:.0f} s")
    line = f"{tally.passed} passed, {tally.failed} failed"
    if tally.skipped:
        line += f", {tally.skipped} skipped"
    print(line)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
