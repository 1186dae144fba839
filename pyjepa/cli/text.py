"""Text from files, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escapes whatever could steer a terminal or hide: control characters, line breaks, direction overrides."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
