"""How a name is shown: of a file, a sample, a donor, a class; what files and people call a thing is any Unicode, or bytes.

A terminal obeys what it is shown: a newline begins another line, ``ESC [`` moves the cursor, an override turns the reading
direction round. So whatever has no place of its own on a line is written as Python writes it, ``\\n``, ``\\x1b``, ``\\u202e``;
a byte that is no UTF-8 (a lone surrogate in Python) as ``\\udce9``. A backslash is doubled where it would else be read as the
beginning of such an escape: two names stay two, and each can be had back. Machines get the names as they are (JSON, SQL).
"""

from __future__ import annotations

import html
import os
import re
from typing import Final

_LETTERS: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
_BACKSLASHES_AT_END: Final = re.compile(r"\\+\Z")
# What begins markup within a line: an underscore inside a word does not; what begins a block does so at the start only.
_MARKDOWN: Final = re.compile(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|\A[#+=-]|(?<=\A\d)[.)])")


def shown(name: str | os.PathLike[str] | bytes) -> str:
    """The name, or a text with names in it, on one line and without anything that a terminal would obey.

    Text that can be printed comes back as it is; no two texts give one. What can be encoded as UTF-8, whatever was given.
    """
    text = os.fsdecode(name)
    if text.isprintable() and "\\" not in text:
        return text
    parts: list[str] = []
    backslashes = 0
    for character in text:
        if character == "\\":
            backslashes += 1
            continue
        escaped = character if character.isprintable() else _escaped(character)
        # A run of backslashes before what reads as an escape is doubled as a whole, so that the last of them is known.
        parts.append("\\" * (backslashes * 2 if escaped != character or character in "nrtxuU" else backslashes) + escaped)
        backslashes = 0
    return "".join(parts) + "\\" * backslashes


def in_column(name: str | os.PathLike[str] | bytes) -> str:
    """:func:`shown` for a name that stands alone in a column: spaces at its ends, which nobody sees there, are ``\\x20``."""
    text = shown(name)
    kept = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if kept else 0
    after = len(text) - len(kept) - before
    if not before and not after:
        return text
    head = _BACKSLASHES_AT_END.sub(lambda run: run.group() * 2, kept) if after else kept
    return "\\x20" * before + head + "\\x20" * after


def in_markdown(name: str | os.PathLike[str] | bytes) -> str:
    """The name, or a sentence with names in it, in a line or a table's cell of a Markdown page: nothing in it is markup or
    HTML, and a reader of the page sees it as :func:`shown` gives it."""
    return html.escape(_MARKDOWN.sub(r"\\\1", shown(name)), quote=False)


def in_plot(name: str | os.PathLike[str] | bytes) -> str:
    """The name inside a title or label of matplotlib: a pair of dollars begins no formula."""
    return shown(name).replace("$", r"\$")


def _escaped(character: str) -> str:
    if character in _LETTERS:
        return _LETTERS[character]
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
