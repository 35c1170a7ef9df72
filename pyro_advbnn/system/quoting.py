"""Texts that a user gave: whether they can be a value at all, and how they are shown in a line that is safe to print."""
import os

MAX_TEXT = 65_536
_SHOWN = 200                                             # characters of a text that a message repeats
_LINE = 4_000                                            # characters of a message
_REASON = 300                                            # characters of an error that a message repeats
_MAX_PATH, _MAX_NAME = 4_095, 255                        # bytes, Linux


def flaw(text):
    """Why text can be the value of no flag, or "": it is endless, or holds what would garble a file, a path or a terminal."""
    if len(text) > MAX_TEXT:
        return f"longer than {MAX_TEXT} characters"
    if any("\ud800" <= c <= "\udfff" for c in text):
        return "not UTF-8"
    if any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" for c in text):
        return "a control character"
    return ""


def flaw_of_path(text):
    """Why text can be no path, or ""."""
    if not text:
        return "an empty path would mean the current folder"
    if len(os.fsencode(text)) > _MAX_PATH or max(map(len, os.fsencode(text).split(b"/"))) > _MAX_NAME:
        return "too long for a path"
    return ""


def quoted(text):
    """text in quotes, control characters as Python writes them, cut where it is long."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text)} characters)"


def one_line(text):
    """text on one line, without control characters, cut where it is longer than anybody would read."""
    text = " ".join(part.strip() for part in text.splitlines())
    text = text if len(text) <= _LINE else f"{text[:_LINE]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def reason(error):
    """What an error says, on one line, cut where it is long; the name of its type where it says nothing."""
    return " ".join(str(error).split())[:_REASON] or type(error).__name__
