"""The documentation says what the code does.

Every counter is in docs/METRICS.md, which is what `kvferryd --metrics` writes,
every status in docs/PROTOCOL.md, every key of the configuration in
docs/CONFIG.md and config/kvferryd.ini as conf_gen writes them, every option of
a program's --help in its man page. Files that prose or a comment names exist.
Failure modes: a page or a program that is not there is named, not passed over
without a word.
"""
import argparse
import os
import re
import subprocess

import source


def rows(path, macro):
    """Names of the rows X(name, ...) of an X-macro, with their lines."""
    text = source.read(path)
    start = text.index(f"#define {macro}(X)")
    end = re.compile(r"(?<!\\)\n").search(text, start).end()
    return [(m.group(1), text.count("\n", 0, m.start()) + 1)
            for m in re.compile(r"\bX\((\w+),").finditer(text, start, end)]


def page(path):
    if os.path.isfile(os.path.join(source.ROOT, path)):
        return source.read(path)
    print(f"check_docs: {path} is not there: not checked")
    return None


def check_rows(found, doc, path, macro, what):
    text = page(doc)
    if text is None:
        return
    for name, line in rows(path, macro):
        if re.search(rf"(?<!\w){name}(?!\w)", text) is None:
            found.add(path, line, f"{what} {name} is not in {doc}")


def output(program, *args):
    return subprocess.run([program, *args], capture_output=True, text=True,
                          check=False, timeout=20).stdout


def check_config(found, conf_gen):
    if conf_gen is None:
        print("check_docs: no --conf-gen: the configuration was not checked")
        return
    sample = page("config/kvferryd.ini")
    if sample is not None and sample != output(conf_gen, "sample"):
        found.add("config/kvferryd.ini", 1,
                  "is not what `conf_gen sample` writes")
    text = page("docs/CONFIG.md")
    if text is not None and output(conf_gen, "table") not in text:
        found.add("docs/CONFIG.md", 1,
                  "has not the table that `conf_gen table` writes")


def check_metrics(found, kvferryd):
    if kvferryd is None:
        print("check_docs: no --kvferryd: docs/METRICS.md was not compared")
        return
    text = page("docs/METRICS.md")
    if text is not None and text != output(kvferryd, "--metrics"):
        found.add("docs/METRICS.md", 1,
                  "is not what `kvferryd --metrics` writes")


def check_man(found, program, man):
    if program is None:
        print(f"check_docs: no program for {man}: not checked")
        return
    text = page(man)
    if text is None:
        return
    text = text.replace("\\-", "-")
    said = output(program, "--help")
    if not said:
        found.add(man, 1, f"{program} --help says nothing")
    for sub in re.findall(r"^  ([a-z]+)  +\S", said, re.M):
        said += output(program, "help", sub)
    for option in sorted(set(re.findall(r"--[a-z][a-z-]*[a-z]", said))):
        if re.search(rf"{option}(?![a-z-])", text) is None:
            found.add(man, 1, f"{option} is not here, but in --help")


# A file of this repository as prose names it; `a.b.c` is none.
NAMED = re.compile(r"(?<![\w./>-])((?:[\w-]+/)*[A-Za-z][\w-]*\.(?:c|h|py|md))"
                   r"(?!\w|\.\w|\(\))")
COMMENT = re.compile(r"/\*.*?\*/", re.S)
COMMANDS = re.compile(r"^```sh\n.*?^```", re.S | re.M)


def check_named(found):
    """Files that were moved or renamed are not looked for where they were."""
    files = source.tracked()
    for path in files:
        text = source.read(path) if path.endswith((".c", ".h", ".md")) else ""
        if path.endswith(".md"):
            places = [(0, COMMANDS.sub(
                lambda m: "\n" * m.group(0).count("\n"), text))]
        else:
            places = [(m.start(), m.group(0)) for m in COMMENT.finditer(text)]
        for start, prose in places:
            for m in NAMED.finditer(prose):
                name = m.group(1)
                if not any(("/" + f).endswith("/" + name) for f in files):
                    line = text.count("\n", 0, start) + 1
                    found.add(path, line + prose.count("\n", 0, m.start()),
                              f"{name}: there is no such file")


def check_pkg_config(found):
    """The library's name is told as pkg-config knows it."""
    m = re.search(r"filebase: '([^']+)'", source.read("src/client/meson.build"))
    for path in source.tracked():
        if path == "README.md" or path.startswith("docs/"):
            for name in re.findall(r"pkg-config [- a-z]*?([a-z]+)[`)]",
                                   source.read(path).replace("\\-", "-")):
                if name != m.group(1):
                    found.add(path, 1, f"pkg-config knows no {name}")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--conf-gen")
    p.add_argument("--kvferryd")
    p.add_argument("--kvferry")
    args = p.parse_args()
    found = source.Findings()
    check_rows(found, "docs/METRICS.md", "src/base/stats.h", "KVF_COUNTERS",
               "counter")
    check_rows(found, "docs/PROTOCOL.md", "include/kvferry/status.h",
               "KVF_STATUS_LIST", "status")
    check_named(found)
    check_pkg_config(found)
    check_config(found, args.conf_gen)
    check_metrics(found, args.kvferryd)
    check_man(found, args.kvferryd, "docs/man/kvferryd.8")
    check_man(found, args.kvferry, "docs/man/kvferry.1")
    found.finish("check_docs")


if __name__ == "__main__":
    main()
