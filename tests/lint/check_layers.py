"""Dependencies between the folders of src/ point down only.

Reads every #include of src/. An edge must lead to the own folder, to a layer
below, or be named in ALSO; libraries are included where they belong; no file
includes itself by a round.
Failure mode: a header that is found nowhere is a finding too.
"""
import os
import re

import source

# From the bottom up; folders of one row do not know each other.
ROWS = [["base"], ["conf", "layout"], ["loop", "wire"], ["memory"],
        ["store"], ["transport"], ["peer"], ["request"], ["daemon"]]
# Beside the rows: programs, the library of clients, and pure mathematics.
ONLY = {
    "client": {"base", "conf", "wire"},
    "cli": {"base", "conf", "client", "layout"},
    "layout": {"base"},
}
# Single headers beyond that, each with its reason.
ALSO = {
    ("cli", "memory/copy.h"),        # bench measures the copy loops
    # doctor says what the transport would choose
    ("cli", "transport/rdma/choose.h"),
    ("cli", "transport/rdma/handshake.h"),
    ("cli", "transport/rdma/verbs.h"),
    ("client", "memory/segment.h"),  # the layout of the pool's first page
}
# The public headers: who may include them.
PUBLIC = {
    "kvferry/status.h": None,  # anybody
    "kvferry/kvferry.h": {"client", "cli"},
}
# Headers of libraries, and the folders that may see them.
LIBRARY = [
    (re.compile(r"event2?/|event\.h|evutil\.h|evdns\.h"), {"loop"}),
    (re.compile(r"zmq"), {"loop", "client"}),
    (re.compile(r"ini\.h$"), {"conf"}),
    (re.compile(r"msgpack"), {"wire"}),
    (re.compile(r"infiniband/"), {"transport"}),
]
INCLUDE = re.compile(r"^\s*#\s*include\s+([<\"])([^>\"]+)[>\"]", re.M)


def rank(folder):
    for i, row in enumerate(ROWS):
        if folder in row:
            return i
    return None


def allowed(folder, target, header):
    if folder == target or (folder, header) in ALSO:
        return True
    if folder in ONLY:
        return target in ONLY[folder]
    a, b = rank(folder), rank(target)
    return a is not None and b is not None and b < a


def resolve(path, header, files):
    """The file that a quoted include means, or None."""
    for at in (os.path.join(os.path.dirname(path), header),
               "src/" + header, "include/" + header):
        if os.path.normpath(at) in files:
            return os.path.normpath(at)
    return None


def check_quoted(found, path, line, header, files):
    folder = path.split("/")[1]
    target = resolve(path, header, files)
    if target is None:
        found.add(path, line, f'"{header}" is no file of the tree')
        return None
    if target.startswith("include/"):
        who = PUBLIC.get(header, set())
        if who is not None and folder not in who:
            found.add(path, line, f"{folder} must not include {header}")
    elif not allowed(folder, target.split("/")[1], header):
        found.add(path, line, f"{folder} must not include {header}: "
                  "dependencies point down only")
    return target


def check_library(found, path, line, header):
    folder = path.split("/")[1]
    for pattern, folders in LIBRARY:
        if pattern.match(header) and folder not in folders:
            found.add(path, line, f"<{header}> belongs to "
                      f"{', '.join(sorted(folders))} only")


def check_rounds(found, edges):
    """Depth first; an edge to a file still open closes a round."""
    state = {}

    def visit(path, trail):
        state[path] = "open"
        for line, target in edges.get(path, []):
            if state.get(target) == "open":
                at = trail.index(target) if target in trail else 0
                found.add(path, line, "a round of includes: " +
                          " -> ".join(trail[at:] + [target]))
            elif target not in state:
                visit(target, trail + [target])
        state[path] = "done"

    for path in sorted(edges):
        if path not in state:
            visit(path, [path])


def main():
    found = source.Findings()
    files = set(source.tracked())
    edges = {}
    for path in sorted(files):
        if not source.is_c(path) or not path.startswith(("src/", "include/")):
            continue
        text = source.code_only(source.read(path), keep_strings=True)
        for m in INCLUDE.finditer(text):
            line = text.count("\n", 0, m.start(1)) + 1
            if path.startswith("include/"):
                if m.group(1) == '"':
                    target = resolve(path, m.group(2), files)
                    if target is None or target.startswith("src/"):
                        found.add(path, line, "a public header includes "
                                  f"{m.group(2)}, which is not installed")
                continue
            if m.group(1) == "<":
                check_library(found, path, line, m.group(2))
                continue
            target = check_quoted(found, path, line, m.group(2), files)
            if target is not None:
                edges.setdefault(path, []).append((line, target))
    check_rounds(found, edges)
    found.finish("check_layers")


if __name__ == "__main__":
    main()
