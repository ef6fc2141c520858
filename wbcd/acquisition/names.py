"""Names that files give (samples, instruments, acquisitions) as text: two names that differ stay two.

A name is a key: the cells of two donors must never be added up because their names could not be shown. So nothing is replaced
by a sign that stands for several things. A name that is UTF-8 is itself. Every byte that is not, and every control character,
is written as ``\\xNN`` (NUL as ``\\0``); where the result could be taken for a name that was written so from the start, the
backslashes of the name are doubled. Code pages are not guessed: the same bytes are other names in each of them, and no format
says which.
"""

from __future__ import annotations

import re

from wbcd.errors import BadField

MAX_TEXT_CHARACTERS = 1000
MAX_NAME_BYTES = 2000
"""Of a name as it is stored, in UTF-8: PostgreSQL's index takes no more than 2,700."""
_UNSHOWN = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LOOKS_ESCAPED = re.compile(r"\\(?:0|x[0-9a-f]{2})")


def known_text(raw: bytes) -> str:
    r"""The text of a file's bytes, UTF-8 or not; the function is one to one.

    ``b"caf\xc3\xa9"`` is "café"; ``b"caf\xe9"`` (Latin 1) is ``caf\xe9``, with no letter é in it. A text
    that holds such a sequence of its own has all its backslashes doubled, so that no other bytes give it.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if _UNSHOWN.search(text) is None and _LOOKS_ESCAPED.search(text) is None:
        return text
    return _UNSHOWN.sub(_escaped, text.replace("\\", "\\\\"))


def _escaped(found: re.Match[str]) -> str:
    # A byte that is no UTF-8 was decoded to U+DC00 and the byte; control characters are below 0x80, so that none meet.
    # NUL has a shorter form: the store, whose own word for it is ``\x00``, then leaves the name as it is.
    byte = ord(found[0]) & 0xFF
    return f"\\x{byte:02x}" if byte else "\\0"


def plain_text(value: str, *, where: str) -> str:
    """A text of JSON by the same rule, a lone surrogate as the three bytes that spell it. Raises BadField when too long."""
    return text_of(value.encode("utf-8", "surrogatepass"), where=where)


def text_of(raw: bytes, *, where: str) -> str:
    """:func:`known_text`, held against the limits of length; ``where`` names the field in the BadField that is raised."""
    text = known_text(raw)
    if len(text) > MAX_TEXT_CHARACTERS or len(text.encode()) > MAX_NAME_BYTES:
        raise BadField(
            f"{where} is a text of {len(text)} characters, {len(text.encode())} bytes; at most {MAX_TEXT_CHARACTERS}"
            f" characters and {MAX_NAME_BYTES} bytes are allowed.",
            action="Write a shorter text into it.",
        )
    return text
