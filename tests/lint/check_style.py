"""The rules of style that a program can see.

Format (clang-format 14, if it is there), length of files and functions, calls
that are banned, leftovers, paths of somebody's machine, and letters outside
ASCII in code.
Failure mode: without clang-format of that version the format is not checked,
which is printed.
"""
import os
import re
import shutil
import subprocess

import source

FILE_CAP, FILE_WARN, FUNCTION_CAP = 600, 400, 100
FORMAT_VERSION = "14"

ROOM = "does not know the room"
BLOCKS = "blocks, or hides a race"
# Programs for us: their strings are their own, and nobody waits for them.
OURS = ("tests/", "bench/")
# call: (why, files or folders where it is right)
BANNED = {
    "strcpy": (ROOM, OURS),
    "strcat": (ROOM, OURS),
    "stpcpy": (ROOM, OURS),
    "sprintf": (ROOM, OURS),
    "vsprintf": (ROOM, OURS),
    "gets": (ROOM, ()),
    "atoi": ("takes anything for a number", OURS),
    "atol": ("takes anything for a number", OURS),
    "strtok": ("keeps hidden state", ()),
    "alloca": ("no bound on the stack", ()),
    # Before the daemon says ready, in the resolver, and in the command, which
    # has nothing else to do meanwhile.
    "getaddrinfo": ("blocks", ("src/daemon/place.c", "src/loop/resolver.c",
                               "src/cli/", *OURS)),
    "gethostbyname": ("blocks", ()),
    # `kvferry status --watch` is a pause that was asked for.
    "sleep": (BLOCKS, ("src/cli/cmd_status.c", *OURS)),
    "usleep": (BLOCKS, OURS),
    "nanosleep": (BLOCKS, OURS),
}
CALL = re.compile(r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\(")
# Written in parts, so that this file does not find itself.
LEFTOVER = re.compile(r"\b(TO" r"DO|FIX" r"ME|HA" r"CK)\b")
MACHINE = re.compile(r"/(?:ho" r"me/\w+|ro" r"ot/|Us" r"ers/\w+|wo" r"rk/\w+"
                     r"|tmp/b-\w+)")
TEXT = (".c", ".h", ".py", ".md", ".ini", ".build", ".service", ".in", ".map",
        ".sh", ".txt", ".1", ".3", ".8")


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1


def check_format(found, files):
    tool = shutil.which("clang-format")
    if tool is not None:
        version = subprocess.run([tool, "--version"], capture_output=True,
                                 text=True, check=False).stdout
        if f"version {FORMAT_VERSION}." not in version:
            tool = None
    if tool is None:
        print(f"check_style: no clang-format {FORMAT_VERSION}: "
              "the format was not checked")
        return
    got = subprocess.run([tool, "--dry-run", "--ferror-limit=1", *files],
                         cwd=source.ROOT, capture_output=True, text=True,
                         check=False)
    seen = set()
    for m in re.finditer(r"^(\S+?):(\d+):\d+: .*clang-format", got.stderr,
                         re.M):
        if m.group(1) not in seen:
            seen.add(m.group(1))
            found.add(m.group(1), m.group(2), "not formatted: clang-format -i")
    if got.returncode != 0 and not seen:
        found.add("clang-format", 1, got.stderr.strip()[:300])


def check_lengths(found, path, text):
    lines = text.split("\n")
    n = len(lines) - (lines[-1] == "")
    if n > FILE_CAP:
        found.add(path, n, f"{n} lines; a file has at most {FILE_CAP}")
    elif n > FILE_WARN:
        print(f"{path}:{n}: (warning) {n} lines; a file should have at most "
              f"{FILE_WARN}")
    start = None
    for i, line in enumerate(lines, 1):
        if line == "{":  # only functions have their brace there
            start = i
        elif line.startswith("}") and start is not None:
            if i - start - 1 > FUNCTION_CAP:
                found.add(path, start, f"a function of {i - start - 1} lines; "
                          f"at most {FUNCTION_CAP}")
            start = None


def check_code(found, path, text):
    code = source.code_only(text)
    for m in CALL.finditer(code):
        why, right = BANNED[m.group(1)]
        if not path.startswith(right):
            found.add(path, line_of(code, m.start()),
                      f"{m.group(1)}() is banned: {why}")
    for m in re.finditer(r"[^\x00-\x7f]", code):
        found.add(path, line_of(code, m.start()),
                  "a letter outside ASCII in code")


def check_words(found, path, text):
    for pattern, what in ((LEFTOVER, "a leftover"),
                          (MACHINE, "a path of one machine")):
        for m in pattern.finditer(text):
            found.add(path, line_of(text, m.start()),
                      f"{what}: {m.group(0)}")


def main():
    found = source.Findings()
    files = source.tracked()
    c_files = [f for f in files if source.is_c(f)]
    check_format(found, c_files)
    for path in files:
        if "/corpus/" in path or not (path.endswith(TEXT) or
                                      os.path.basename(path) in
                                      ("run", "deps")):
            continue
        text = source.read(path)
        check_words(found, path, text)
        if source.is_c(path):
            check_lengths(found, path, text)
            check_code(found, path, text)
    found.finish("check_style")


if __name__ == "__main__":
    main()
