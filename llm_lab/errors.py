"""Errors for users: what is wrong, why, what is allowed, how to fix it."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .safe_text import redact, shorten

_NO_VALUE = object()
# Exit codes without an error for the user.
DONE, INTERNAL_ERROR, STOPPED = 0, 1, 130
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # also for a quota, or the maximum size of a file
# Maximum characters of a key and of each part of an error, and maximum number of problems in one error.
LONGEST_KEY, LONGEST_PATH, LONGEST, MOST_PROBLEMS = 300, 160, 2000, 50
SIMILAR = 0.6  # minimum ratio of difflib for a suggestion
MOST_NAMED = 8  # maximum number of names in a suggestion


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong; str() gives one short paragraph.

    key: the dotted recipe key, the path or the command-line argument.
    """

    key: str
    why: str
    value: Any = _NO_VALUE
    allowed: str | None = None
    fix: str | None = None

    @property
    def has_value(self) -> bool:
        return self.value is not _NO_VALUE

    def __str__(self) -> str:
        key = shorten(self.key, LONGEST_KEY)
        what = key if not self.has_value else f"{key} = {_short(self.value)}"
        text = f"{what}: {sentence(self.why)}"
        if self.allowed:
            text += f" Allowed: {sentence(self.allowed)}"
        if self.fix:
            text += f" {sentence(self.fix)}"
        return redact(text)


class LabError(ValueError):
    """An error that a user can fix. exit_code: the command line's exit code."""

    exit_code = 2

    def __init__(self, *problems: Problem | str):
        if len(problems) > MOST_PROBLEMS:
            problems = (*problems[:MOST_PROBLEMS], f"{len(problems) - MOST_PROBLEMS:,} more problems are not shown.")
        self.problems: tuple[Problem | str, ...] = tuple(
            redact(shorten(problem, LONGEST)) if isinstance(problem, str) else problem for problem in problems
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows instead of a traceback: the problems."""
        return [f"{type(self).__name__}: {self}"]


class UserError(LabError):
    """The user's input is wrong: a recipe, a path, data. Exit code 2."""

    exit_code = 2


class MachineError(LabError):
    """This machine lacks something: bf16 CUDA, memory, a package. Exit code 3."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """Return the first line of an error message that has text, or the name of the exception."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return 'Did you mean X?' with the closest known name, or None."""
    near = closest(name, known)
    return f"Did you mean {near}?" if near else None


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to a name; None if none is similar enough."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=SIMILAR)), None)


def similar_path(path: str) -> str | None:
    """Return 'Did you mean X?' for the existing file or folder that is most similar to a missing one, or None."""
    missing = Path(path).expanduser()
    try:
        while not missing.parent.exists():
            missing = missing.parent
        names = [entry.name for entry in missing.parent.iterdir() if not entry.name.startswith(".")]
    except (OSError, ValueError):  # ValueError: a NUL character in the name
        return None
    stems = {Path(name).stem for name in names}
    near = difflib.get_close_matches(missing.name, names, n=len(names) or 1, cutoff=SIMILAR)
    alike = difflib.get_close_matches(missing.stem, stems, n=len(stems) or 1, cutoff=SIMILAR)
    found = next((name for name in near if Path(name).stem in alike), None)  # the same suffix alone is not enough
    return f"Did you mean {missing.parent / found}?" if found else None


def suggest(name: str, known: Sequence[str], none: str) -> str:
    """Return 'Did you mean X?' with the closest known name, or a list of known names. none: the text if there are none.

    It mentions no command and no page, so that it is correct wherever the error is shown.
    """
    if near := did_you_mean(name, known):
        return near
    more = f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else ""
    return f"There are: {', '.join(known[:MOST_NAMED])}{more}." if known else none


def one_of(choices: Sequence[Any]) -> str:
    """Return choices as text for the `allowed` part of a problem."""
    return ", ".join(str(choice) for choice in choices)


def leave_out(key: str) -> str:
    """Return the fix for a key that should not be set: in the file, or by an override."""
    return f"Leave it out; on the command line: {key}=null"


def with_article(noun: str) -> str:
    """Return a noun after "a" or "an". A first word without a vowel, such as an abbreviation, is read as letters."""
    first = noun.split()[0].lower()
    is_spelled = not set(first) & set("aeiouy")
    return f"{'an' if first[0] in ('fhlmnrsx' if is_spelled else 'aeiou') else 'a'} {noun}"


def _short(value: Any) -> str:
    text = _as_yaml(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _as_yaml(value: Any) -> str:
    """Return a value as a recipe writes it, but text without quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_as_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_as_yaml(item) or '""' for item in value) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def sentence(text: str) -> str:
    """Return a text with a full stop, unless it ends with a punctuation mark."""
    text = shorten(text.strip(), LONGEST)
    return text if text.endswith((".", "?", "!")) else text + "."


def file_error(error: Exception) -> LabError | None:
    """Return an error for the user if the system refuses a file that the user named, or the disk is full; else None."""
    if isinstance(error, RuntimeError) and str(error).startswith("Could not determine home directory"):
        return UserError(Problem("~", "no user of this machine has this name", fix="Write the whole path."))
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL_DISK:
        where = str(error.filename or "the disk")
        return MachineError(Problem(where, "the disk is full", fix="Free some space, then resume with --resume."))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP) and error.filename:
        fix = {
            errno.ENAMETOOLONG: "Choose a shorter name.",
            errno.ELOOP: "Choose another path: links in this one lead in a circle.",
        }.get(error.errno, "Choose another path, or change its permissions.")
        name = str(error.filename)
        name = name if len(name) <= LONGEST_PATH else f"{name[:40]}...{name[-20:]}"
        return UserError(Problem(name, os.strerror(error.errno), fix=fix))
    return None
