"""Checks the documents against the repository: links, paths, commands, the map of ARCHITECTURE.md, lengths.

    python tests/python/check_docs.py [--tessera PROGRAM]

Every relative link and anchor of every Markdown file resolves. Every path in backticks exists, and every Rust item is
defined. In blocks marked `sh`, every `tessera` command is accepted by the program's parser, every `tessera_train`
command by the package's, and every flag of a script is one that it has. Each directory (hidden ones apart) and each
entry of `src/` is in the map of ARCHITECTURE.md, and the map names nothing else. Nothing is executed: `tessera` gets
`--help` behind each command's arguments, and the package parses without running. Needs the built program, and PyTorch
for `tessera_train`; with mdBook it builds the book too.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "docs" / "src"
README_LINES = 150
COLUMNS = 120
OF_LIMITED_WIDTH = ("docs", "examples")
"""Folders whose documents, with those at the root, have lines of at most COLUMNS; tables are as wide as they need."""
PHRASES = {"but for": "except", "in place of": "instead of", "whoever": "anyone who", "somebody": "a user", "nobody": "no user"}
"""Phrases that documents avoid, with the plain word."""
INCLUDE = r"\{\{#include ([^}:\s]+)"
SEPARATORS = {";", "&", "&&", "|", "||", "(", ")", "\n"}

problems: list[str] = []
counts = {"links": 0, "paths": 0, "items": 0, "commands": 0, "entries of the map": 0}


def problem(file: Path, line: int, text: str) -> None:
    """Notes a problem."""
    problems.append(f"{file.relative_to(ROOT)}:{line}: {text}")


def tracked(*patterns: str) -> list[str]:
    """Files that git tracks or would track, by patterns of their names; those that were removed are left out."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted({name for name in names if name and (ROOT / name).exists()})


class Document:
    """A Markdown file: its lines of prose, and its fenced blocks as (language, first line, lines)."""

    def __init__(self, path: Path) -> None:
        self.path, self.prose, self.blocks = path, [], []
        block = None
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
            fence = re.match(r"\s*```\s*(\w*)", line)
            if fence and block is None:
                block = (fence[1], number + 1, [])
            elif fence:
                self.blocks.append(block)
                block = None
            elif block is not None:
                block[2].append(line)
            else:
                self.prose.append((number, line))
        if block is not None:
            problem(path, block[1], "the block is not closed")

    def anchors(self) -> set[str]:
        """Anchors of the headings, as GitHub and mdBook name them; those of an included file count too."""
        found: dict[str, int] = {}
        lines = [line for _, line in self.prose]
        for included in re.findall(INCLUDE, "\n".join(lines)):
            lines += [line for _, line in Document((self.path.parent / included).resolve()).prose]
        for line in lines:
            if heading := re.match(r"#+\s+(.*?)\s*#*$", line):
                slug = re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-")
                found[slug] = found.get(slug, -1) + 1
        return {slug if n == 0 else f"{slug}-{n}" for slug, last in found.items() for n in range(last + 1)}


def check_links(document: Document, documents: dict[Path, Document]) -> None:
    """Relative links and anchors resolve; pages of the book link to pages of the book only."""
    for number, line in document.prose:
        plain = re.sub(r"`[^`]*`", "", line)
        targets = re.findall(r"\]\(<?([^)>\s]+)>?(?:\s+\"[^\"]*\")?\)", plain) + re.findall(r"^\[[^\]]+\]:\s*(\S+)", plain)
        includes = re.findall(INCLUDE, plain)
        for target in targets:
            if re.match(r"[a-z][a-z+.-]*:", target):
                continue
            counts["links"] += 1
            name, _, anchor = unquote(target).partition("#")
            path = (document.path.parent / name).resolve() if name else document.path
            if not path.exists():
                problem(document.path, number, f"link to {target}: there is no such file")
            elif BOOK in document.path.parents and BOOK not in path.parents:
                problem(document.path, number, f"link to {target}: it is outside the book, where the link would be broken")
            elif anchor and anchor not in documents.get(path, Document(path)).anchors():
                problem(document.path, number, f"link to {target}: there is no such heading")
        for include in includes:
            counts["links"] += 1
            path = (document.path.parent / include).resolve()
            if path not in documents:
                problem(document.path, number, f"includes {include}: there is no such file")
                continue
            for at, text in documents[path].prose:
                if re.search(r"\]\((?!#|[a-z]+:)", re.sub(r"`[^`]*`", "", text)):
                    problem(path, at, f"has a relative link, which is broken where {document.path.name} includes it")


def check_paths(document: Document, tops: set[str]) -> None:
    """Paths in backticks exist, as seen from the root or from the document."""
    for number, line in document.prose:
        for text in re.findall(r"`([^`]+)`", line):
            if not re.fullmatch(r"\.?[\w.-]+(/[\w.*-]*)+", text) or re.search(r"[A-Z]{4,}", Path(text).stem):
                continue
            if text.split("/")[0] in tops:
                counts["paths"] += 1
                pattern = text.rstrip("/")
                if not any(True for _ in ROOT.glob(pattern)) and not any(True for _ in document.path.parent.glob(pattern)):
                    problem(document.path, number, f"{text}: there is no such file")


def check_items(document: Document, defined: set[str]) -> None:
    """Rust items in backticks, such as `engine::plan::Plan`, are defined in `src/`."""
    for number, line in document.prose:
        for text in re.findall(r"`((?:\w+::)+\w+)`", line):
            counts["items"] += 1
            if text.split("::")[-1] not in defined:
                problem(document.path, number, f"{text}: src/ does not define it")


def check_lengths(document: Document) -> None:
    """Lines have at most COLUMNS columns; the README has at most README_LINES lines."""
    parts = document.path.relative_to(ROOT).parts
    name = "/".join(parts)
    text = document.path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if name == "README.md" and len(text) > README_LINES:
        problem(document.path, len(text), f"has {len(text)} lines; the limit is {README_LINES}")
    if len(parts) > 1 and parts[0] not in OF_LIMITED_WIDTH:
        return
    for number, line in enumerate(text, 1):
        if len(line) > COLUMNS and (name == "README.md" or not line.startswith("|")):
            problem(document.path, number, f"has {len(line)} columns; the limit is {COLUMNS}")


def check_phrases(document: Document) -> None:
    """Prose is free of the phrases that house rules replace."""
    for number, line in document.prose:
        for phrase, plain in PHRASES.items():
            if re.search(rf"\b{phrase}\b", line, re.IGNORECASE):
                problem(document.path, number, f'"{phrase}": write "{plain}"')


def check_book(documents: dict[Path, Document]) -> None:
    """Every page of the book is in its table of contents."""
    summary = documents[BOOK / "SUMMARY.md"]
    listed = {match for _, line in summary.prose for match in re.findall(r"\]\(([^)]+)\)", line)}
    for path in BOOK.rglob("*.md"):
        if path != summary.path and str(path.relative_to(BOOK)) not in listed:
            problem(path, 1, "is not in SUMMARY.md")


def build_book() -> None:
    """Builds the book, where mdBook is installed."""
    program = shutil.which("mdbook", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        print("mdbook is not installed: the book is not built")
        return
    result = subprocess.run([program, "build", str(ROOT / "docs")], capture_output=True, text=True, check=False)
    if result.returncode or re.search(r"\b(WARN|ERROR)\b", result.stderr):
        problem(BOOK / "SUMMARY.md", 1, f"mdbook: {result.stderr.strip()}")


def check_map(document: Document, files: list[str]) -> None:
    """The map names files that exist, and every directory at the root and every entry of `src/` is in it."""
    block = next((lines for language, _, lines in document.blocks if not language and "src/" in "\n".join(lines)), None)
    if block is None:
        problem(document.path, 1, "there is no map with src/")
        return
    named: set[str] = set()
    stack: list[tuple[int, str]] = []
    for line in block:
        entry = re.match(r"( *)(\S+)  +\S", line)
        if entry is None or len(entry[1]) > 12:
            continue  # a description's second line
        indent, name = len(entry[1]), entry[2]
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = "".join(parent for _, parent in stack) + name
        stack.append((indent, name))
        named.add(path.rstrip("/"))
        counts["entries of the map"] += 1
        if not (ROOT / path).exists() or (ROOT / path).is_dir() != path.endswith("/"):
            problem(document.path, 1, f"the map names {path}, which does not exist")
    for file in files:
        parts = Path(file).parts
        expected = "/".join(parts[:2]) if parts[0] == "src" else parts[0]
        covered = any(name in (expected, f"{expected}.rs") or name.startswith(f"{expected}/") for name in named)
        if len(parts) > 1 and not expected.startswith(".") and not covered:
            problem(document.path, 1, f"the map lacks {expected}")
            named.add(expected)


def commands(lines: list[str], first: int) -> list[tuple[int, list[str]]]:
    """The commands of a block of shell, each as its words, without redirections and assignments."""
    found: list[tuple[int, list[str]]] = []
    text, start = "", first
    for number, line in enumerate([*lines, ""], first):
        if text.endswith("\\"):
            text = text[:-1] + line
        else:
            found += one_line(text, start)
            text, start = re.sub(r"^\$ ", "", line), number
        if text.count("'") % 2 or re.sub(r"\\\"", "", text).count('"') % 2:
            text += "\\"  # an open quotation goes on in the next line
    return found


def one_line(text: str, number: int) -> list[tuple[int, list[str]]]:
    """See `commands`."""
    lexer = shlex.shlex(text.replace("$(", " ( "), posix=True, punctuation_chars=True)
    lexer.commenters, lexer.whitespace_split = "#", True
    try:
        words = list(lexer)
    except ValueError:
        return [(number, ["unreadable"])]
    found, command = [], []
    skip = False
    for word in [*words, ";"]:
        if word in SEPARATORS:
            if command:
                found.append((number, command))
            command = []
        elif skip or re.fullmatch(r"\d*[<>]+", word):
            skip = not skip  # a redirection and its file
        elif command or not re.match(r"\w+=", word):
            command.append(word)
    return found


class Tessera:
    """The program's parser: `--help` behind a command's arguments parses those before it and carries nothing out."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.usages: dict[str, str] = {}

    def run(self, arguments: list[str]) -> subprocess.CompletedProcess:
        """Runs the program with `arguments` and `--help`."""
        return subprocess.run([self.program, *arguments, "--help"], capture_output=True, text=True, timeout=60, check=False)

    def check(self, arguments: list[str]) -> str | None:
        """Why the command is wrong; None if it is not."""
        result = self.run(arguments)
        if result.returncode:
            return result.stderr.strip().split("\n")[0]
        if not arguments or arguments[0].startswith("-"):
            return None
        usage = self.usages.setdefault(arguments[0], self.run(arguments[:1]).stdout)
        return missing(usage, arguments[1:])


def missing(usage: str, arguments: list[str]) -> str | None:
    """What the usage wants and the arguments lack; `--help` hides that from the parser."""
    line = next(line for line in usage.split("\n") if line.startswith("Usage:"))
    with_value = set(re.findall(r"(--[\w-]+) <", usage))
    given_flags = {argument.split("=")[0] for argument in arguments}
    group = r"<((?:--[\w-]+(?: <[^>]+>)?\|?)+)>"
    for flags in re.findall(group, line):
        if given_flags.isdisjoint(re.findall(r"--[\w-]+", flags)):
            return f"one of {flags} is missing"
    line = re.sub(group, "", line)
    for flag in re.findall(r"(--[\w-]+) <[^>]+>", line):
        if flag not in given_flags:
            return f"{flag} is missing"
    places = re.findall(r"<[^>]+>", re.sub(r"--[\w-]+ <[^>]+>", "", line))
    given, value = [], False
    for argument in arguments:
        if value or argument.startswith("-"):
            value = not value and argument in with_value
        else:
            given.append(argument)
    return f"{places[len(given)]} is missing" if len(given) < len(places) else None


class Package:
    """The parsers of `tessera_train`, without what they start."""

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "train"))
        original = importlib.import_module

        def without_run(name: str, package: str | None = None):
            module = original(name, package)
            if hasattr(module, "add_arguments"):
                module.run = lambda *_: 0
            return module

        importlib.import_module = without_run
        self.main = original("tessera_train.__main__").main

    def check(self, arguments: list[str]) -> str | None:
        """Why the command is wrong; None if it is not."""
        text = io.StringIO()
        try:
            with redirect_stderr(text), redirect_stdout(text):
                code = self.main(arguments)
        except SystemExit as stop:
            code = stop.code
        return (text.getvalue().strip().split("\n")[-1] or f"exit code {code}") if code else None


def script_flags(script: Path, arguments: list[str]) -> str | None:
    """A flag that a script does not have."""
    text = script.read_text(encoding="utf-8")
    unknown = [a for a in arguments if a.startswith("--") and f'"{a.split("=")[0]}"' not in text]
    return f"{script.name} has no {unknown[0]}" if unknown else None


def check_command(document: Document, words: list[str], tessera: Tessera, package: Package) -> str | None:
    """Why a command is wrong; None if it is not, or is none of this project's."""
    name = Path(words[0]).name
    if words[:2] == ["cargo", "run"] and "--" in words:
        name, words = "tessera", words[words.index("--") :]
    if name == "tessera":
        counts["commands"] += 1
        return tessera.check(words[1:])
    if "tessera_train" in words and words[words.index("tessera_train") - 1] == "-m":
        counts["commands"] += 1
        return package.check(words[words.index("tessera_train") + 1 :])
    scripts = [word for word in words[:2] if word.endswith((".py", ".sh"))]
    if scripts:
        counts["commands"] += 1
        script = next((p for p in (ROOT / scripts[0], document.path.parent / scripts[0]) if p.exists()), None)
        return script_flags(script, words) if script else f"there is no {scripts[0]}"
    return None


def main() -> int:
    """Checks everything; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tessera", default=str(ROOT / "target" / "release" / "tessera"), help="the built program")
    args = parser.parse_args()
    tessera, package = Tessera(args.tessera), Package()
    files = tracked()
    documents = {ROOT / name: Document(ROOT / name) for name in files if name.endswith(".md")}
    tops = {Path(name).parts[0] for name in files if "/" in name}
    sources = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in files if re.match(r"src/.*\.rs", name))
    defined = set(re.findall(r"\b(?:fn|struct|enum|trait|mod|const|static|type)\s+(\w+)", sources))
    for document in documents.values():
        check_links(document, documents)
        check_paths(document, tops)
        check_items(document, defined)
        check_lengths(document)
        check_phrases(document)
        for language, first, lines in document.blocks:
            for number, words in commands(lines, first) if language == "sh" else ():
                if why := check_command(document, words, tessera, package):
                    problem(document.path, number, f"{shlex.join(words)}: {why}")
    check_book(documents)
    build_book()
    check_map(documents[ROOT / "ARCHITECTURE.md"], files)
    problems.extend(f"no {kind} were found, so none were checked" for kind, count in counts.items() if not count)
    for text in problems:
        print(text, file=sys.stderr)
    print(f"{len(documents)} documents: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
