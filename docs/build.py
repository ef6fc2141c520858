"""Checks the documentation, and writes the pages that follow from the code.

python docs/build.py            check: links, anchors, and that the made pages are those of the code (`make docs`)
python docs/build.py --write    make docs/reference/{cli,configuration,errors}.md anew
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from wbcd import errors
from wbcd.cli import cli
from wbcd.config import RECIPE_LIMITS, RECIPE_SECTIONS, SITE_SECTIONS, Config, known_keys
from wbcd.recipe import ALGORITHM_HISTORY

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
MADE = "<!-- made by docs/build.py --write; do not edit -->\n\n"

CLI_HEAD = """# Command line

Exit status: 0 done; 2 wrong usage; 65 no such sample, cell or class (the nearest is named); 69 the database is away; 70 a
stage failed; 73 a file or folder cannot be written or read, or is there already; 74 the accelerator was lost, or standard
output takes no more; 77 no permission; 78 wrong configuration, model or schema, or a daemon
that works there already; 130 interrupted (a sentence says how to go
on); 141 the reader of a pipe has gone (`wbcd counts | head -1`). Results go to standard output, logs and progress to
standard error.

Without `--config`, `--db` and their variables, and without a `wbcd.db` in the present folder, the verbs that only look at, or
add to, what is there read `/etc/wbcd/wbcd.toml`, and say so on standard error.

In lines for a person a name stands on one line: what cannot be printed is shown as Python writes it (`\\n`, `\\x1b`; a byte
that is no UTF-8 as `\\udce9`). With `--json` names are whole as they are.
"""
CONFIGURATION_HEAD = """# Configuration

A TOML file (`--config` or `WBCD_CONFIG`), then environment variables, then the command line; a later source wins. Unknown
keys are refused with the nearest known one. The variable of `watch.dir` is `WBCD_WATCH_DIR`. `wbcd config show` prints what
holds; an example with every site setting is in `deploy/wbcd.example.toml`.
"""
ALGORITHMS_HEAD = """
### Algorithms

`algorithms` of a stored recipe: the version of each stage's algorithm. They are in the recipe's id and cannot be set: they say
which code computed ([what an upgrade does](../how-to/upgrade.md)). Stored recipes without them are of before they were counted.

| stage | version | what each version changed |
|---|---|---|
"""


# --- pages that follow from the code --------------------------------------------------------------


def cli_page() -> str:
    """Every verb's help, as a terminal of 100 columns shows it."""
    parts = [MADE, CLI_HEAD]
    for words, command in _commands(cli, ("wbcd",)):
        context = click.Context(command, info_name=" ".join(words), max_content_width=100, terminal_width=100)
        parts.append(f"\n## {' '.join(words)}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "".join(parts)


def _commands(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None:
                yield from _commands(inner, (*words, name))


def configuration_page() -> str:
    """Every key with its default, limits and meaning."""
    parts = [MADE, CONFIGURATION_HEAD]
    defaults = Config()
    for section in SITE_SECTIONS:
        parts.append(f"\n## [{section}]\n\n| key | default | limits | meaning |\n|---|---|---|---|\n")
        for key, item in known_keys().items():
            if key.startswith(f"{section}."):
                value = getattr(getattr(defaults, section), item.name)
                parts.append(f"| `{item.name}` | {_shown(value)} | {_limits(item.metadata)} | {item.metadata['help']} |\n")
    parts.append("\n## The recipe\n\nWhatever changes a number. The hash of all of it names every result.\n")
    for section in RECIPE_SECTIONS:
        parts.append(f"\n### [recipe.{section}]\n\n| key | default | limits |\n|---|---|---|\n")
        for key, item in known_keys().items():
            if key.startswith(f"recipe.{section}."):
                value = getattr(getattr(defaults.recipe, section), item.name)
                limits = _recipe_limits(f"{section}.{item.name}", value, item.metadata)
                parts.append(f"| `{item.name}` | {_shown(value)} | {limits} |\n")
    parts.append(ALGORITHMS_HEAD)
    parts += [f"| `{stage}` | {len(lines)} | {_numbered(lines)} |\n" for stage, lines in ALGORITHM_HISTORY.items()]
    return "".join(parts)


def _numbered(lines: tuple[str, ...]) -> str:
    return "; ".join(f"{number}: {line}" for number, line in enumerate(lines, 1))


def _shown(value: object) -> str:
    if value is None:
        return "not set"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _limits(metadata: object) -> str:
    values = dict(metadata)  # type: ignore[call-overload]
    if values.get("choices"):
        return ", ".join(values["choices"])
    low, high = values.get("low"), values.get("high")
    return f"{low:g} to {high:g}" if low is not None and high is not None else ""


def _recipe_limits(key: str, default: object, metadata: object) -> str:
    if isinstance(default, (bool, str)):
        return _limits(metadata)
    low, high = RECIPE_LIMITS.get(key, (0.0, None))
    return f"{low:g} or more" if high is None else f"{low:g} to {high:g}"


def errors_page() -> str:
    """The tree of errors with code and advice."""
    tree = (errors.__doc__ or "").split("\n\n")[1]
    parts = [
        MADE,
        f"# Errors\n\nEach has a stable code, which is stored and counted, and says what to do.\n\n```text\n{tree}\n```\n\n",
    ]
    parts.append("| code | what to do |\n|---|---|\n")
    for kind in _kinds(errors.WbcdError):
        parts.append(f"| `{kind.code}` | {kind.action} |\n")
    return "".join(parts)


def _kinds(kind: type[errors.WbcdError]) -> Iterator[type[errors.WbcdError]]:
    yield kind
    for inner in kind.__subclasses__():
        yield from _kinds(inner)


PAGES = {
    ROOT / "docs/reference/cli.md": cli_page,
    ROOT / "docs/reference/configuration.md": configuration_page,
    ROOT / "docs/reference/errors.md": errors_page,
}


# --- checks ---------------------------------------------------------------------------------------


def problems() -> Iterator[str]:
    """What is wrong, one sentence each."""
    for path, make in PAGES.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != make():
            yield f"{path.relative_to(ROOT)} is not what the code says; run python docs/build.py --write"
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        yield from _page_problems(path)


def _page_problems(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if not re.search(r"^# ", text, re.MULTILINE):
        yield f"{path.relative_to(ROOT)} has no title"
    for target in LINK.findall(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        if not found.exists():
            yield f"{path.relative_to(ROOT)} links to {target}, which is not there"
        elif anchor and anchor not in _anchors(found):
            yield f"{path.relative_to(ROOT)} links to {target}, which has no such heading"


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def main() -> int:
    if "--write" in sys.argv[1:]:
        for path, make in PAGES.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(make(), encoding="utf-8")
    found = list(problems())
    for problem in found:
        click.echo(problem, err=True)
    click.echo(f"{len(found)} problems in the documentation" if found else "the documentation is whole")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
