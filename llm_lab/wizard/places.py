"""What a question for a path lists: the matching files and folders of a place, and recent and built-in data."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llm_lab.estimate.formatting import plural, size
from llm_lab.recipe.files import PLAIN_TEXT
from llm_lab.recipe.registry import stage_of
from llm_lab.runs.folder import list_runs

from .questions import Choice
from .walk import remember

LookFor = str  # a key of KINDS, or "" for any file
MOST_FILES = 200  # files listed per folder
MOST_LOOKED_AT = 3_000  # names; a limit, so that a large folder does not keep the user waiting
DEPTH = 3  # levels of folders, the listed one included
HEAD_BYTES = 4096
RECENT = 4  # datasets that are offered again
# Folders, apart from hidden ones, whose many files are not a user's texts.
SKIPPED = frozenset(("checkpoints", "node_modules", "__pycache__", "site-packages", "venv", "env", "build", "dist"))
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
ABOUT_THE_DATA = ("readme", "license", "licence", "notice", "changelog", "requirements")


@dataclass(frozen=True)
class Place:
    """A file or folder in a list. path: the answer it gives; enters: whether it is a folder to open instead."""

    path: str
    about: str = ""
    why_not: str | None = None
    enters: bool = False
    bytes: int = 0


@dataclass(frozen=True)
class Kind:
    """What to look for. files: whether a file name matches; marks: file names that make a folder an answer itself."""

    files: Callable[[str], bool]
    marks: tuple[str, ...] = ()
    whole: bool = False  # all files of a folder together are also an answer
    below: bool = False  # files in subfolders are listed, too


def _data(*kinds: str) -> Callable[[str], bool]:
    def fits(name: str) -> bool:
        from llm_lab.data.readers import kind_of

        return kind_of(name) in kinds

    return fits


def _ends(*suffixes: str) -> Callable[[str], bool]:
    return lambda name: name.lower().endswith(suffixes)


KINDS: dict[LookFor, Kind] = {
    "texts": Kind(_data("text", "jsonl", "csv", "parquet", "arrow"), whole=True, below=True),
    "examples": Kind(_data("jsonl", "csv", "parquet", "arrow"), whole=True, below=True),
    "models": Kind(_ends(".gguf"), ("run.json", "config.json", "adapter_config.json")),
    "configs": Kind(lambda name: name == "config.json", ("config.json",)),
    "tokenizers": Kind(lambda name: False, ("tokenizer.json", "run.json")),
    "recipes": Kind(_ends(".yaml", ".yml"), ("recipe.yaml",)),
    "python": Kind(_ends(".py"), below=True),
    "new file": Kind(lambda name: True),
    "": Kind(lambda name: True),
}


def places_in(folder: str, look_for: LookFor) -> list[Place]:
    """Return what to list for a folder ("" for the current one): matching files, then the folders to open.

    A file that can't be used is listed with the reason.
    """
    kind, where = KINDS[look_for], Path(folder or ".").expanduser()
    files, folders = [], []
    for path, is_folder in _names(where, DEPTH if kind.below else 1):
        shown = str(Path(folder) / path.relative_to(where)) if folder else str(path.relative_to(where))
        if not is_folder:
            if kind.files(path.name):
                files.append(_file(path, shown, look_for))
        elif any((path / mark).is_file() for mark in kind.marks):
            files.append(Place(shown, "run" if (path / "run.json").is_file() else "model"))
        elif path.parent == where and path.name not in ("__pycache__", "node_modules"):
            folders.append(Place(f"{shown}/", _inside(path, kind), enters=True))
    files.sort(key=_order)
    usable = [file for file in files if not file.why_not]
    if folder and kind.whole and len(usable) > 1:
        files.insert(0, _whole_folder(folder, usable))
    return [*files[:MOST_FILES], *sorted(folders, key=lambda place: place.path.lower())]


def _whole_folder(folder: str, files: Sequence[Place]) -> Place:
    """Return the line for all files of a folder together; files of several types can't be one dataset."""
    from llm_lab.data.readers import kind_of

    kinds = Counter(str(kind_of(file.path)) for file in files)
    mixed = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    if len(kinds) > 1:
        return Place(folder.rstrip("/"), f"all {len(files)} files", f"several types: {mixed}")
    return Place(folder.rstrip("/"), f"all {len(files)} files, {size(sum(file.bytes for file in files))}")


def _names(where: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """Yield (path, whether it is a folder) for the contents of a folder and its subfolders, the nearest first."""
    level, left = [where], MOST_LOOKED_AT
    for at in range(depth):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                left -= 1
                if left < 0:
                    return
                if entry.name.startswith("."):
                    continue
                is_folder = entry.is_dir()
                if is_folder and entry.name not in SKIPPED and not (Path(entry.path) / "pyvenv.cfg").exists():
                    below.append(Path(entry.path))
                if not is_folder or at == 0:
                    yield Path(entry.path), is_folder
        level = below


def _order(place: Place) -> tuple[bool, bool, int, bool, str]:
    """Return the sort key: usable first, documentation last, the nearest first, text before tables, then by name."""
    path = Path(place.path)
    about = path.name.lower().startswith(ABOUT_THE_DATA)
    is_table = path.suffix.lower() not in PLAIN_TEXT
    return bool(place.why_not), about, len(path.parts), is_table, place.path.lower()


def best_text(places: Sequence[Place]) -> str | None:
    """Return the path of the text that a user most likely means: the largest of those that sort first."""
    usable = [place for place in places if not place.enters and not place.why_not]
    alike = [place for place in usable if _order(place)[:-1] == _order(usable[0])[:-1]]
    return max(alike, key=lambda place: place.bytes).path if alike else None


def _file(path: Path, shown: str, look_for: LookFor) -> Place:
    try:
        found = path.stat()
    except OSError:
        return Place(shown, why_not="not readable")
    if not stat.S_ISREG(found.st_mode):  # reading a pipe could block forever
        return Place(shown, why_not="not a regular file")
    count = found.st_size
    if look_for == "new file":
        return Place(shown, size(count), "already exists")
    if look_for in ("texts", "examples"):
        return Place(shown, size(count), why_no_data(path), bytes=count)
    return Place(shown, size(count), bytes=count)


def _inside(folder: Path, kind: Kind) -> str:
    """Return a description of a folder's contents, not counting its subfolders."""
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return "not readable"
    fitting = sum(1 for name in names if kind.files(name))
    return plural(fitting, "file") if fitting else ""


def why_no_data(path: Path) -> str | None:
    """Return why a file has no text to train on, as its first bytes show, or None."""
    from llm_lab.data.opening import PACKED, unexpected_start
    from llm_lab.data.readers import TYPED, kind_of

    kind = kind_of(path.name) or "text"
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return "not readable"
    if not head:
        return "empty"
    if path.suffix.lower() in PACKED or kind in TYPED:
        return None
    if found := unexpected_start(head, path.name, kind):
        return found[0]
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16 can be read
        return None
    if b"\0" in head:
        return "binary, not text"
    try:  # the head may end within a character
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return "not UTF-8 text"
    return None


def built_in(kind: str) -> tuple[Choice, ...]:
    """Return the built-in datasets of a kind, as choices."""
    from llm_lab.data.builtin import ABOUT_BUILTIN, BUILTIN, BUILTIN_EXAMPLES

    names = set(BUILTIN if kind == "text" else BUILTIN_EXAMPLES)
    if kind == "preference":  # only generated problems include worse answers
        names &= set(BUILTIN)
    return tuple(Choice(f"builtin:{name}", about) for name, about in ABOUT_BUILTIN.items() if name in names)


@remember
def recent_data(kind: str) -> tuple[Choice, ...]:
    """Return the data of a kind that the newest runs read, as choices: existing local data, and names on the Hub."""
    found: dict[str, str] = {}
    for run in list_runs():
        facts = run.facts()
        stage = stage_of(facts)
        if stage is None or stage.examples != kind:
            continue
        for source in facts.get("data") or ():
            path = str(source.get("path") or "")
            there = Path(path).expanduser().exists() or is_hub_name(path)
            there = there and not source.get("own")  # a run's own validation data has a description instead of a path
            if path and there and not path.startswith("builtin:"):
                found.setdefault(path, f"used by {run.path.name}")
    return tuple(Choice(path, about) for path, about in islice(found.items(), RECENT))


def offered(kind: str) -> tuple[Choice, ...]:
    """Return the data of a kind that is offered next to the files: recent and built-in."""
    return (*recent_data(kind), *built_in(kind))


def is_hub_name(path: str) -> bool:
    """Whether a path names a dataset on the Hub."""
    from llm_lab.data.paths import is_on_hub

    return HUB_NAME.fullmatch(path) is not None and is_on_hub(path)
