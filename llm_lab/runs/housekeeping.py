"""The runs on disk: their sizes, deleting and renaming one, and finding what can be deleted without loss."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.estimate.adapter_base import find_base, read_object
from llm_lab.estimate.formatting import size
from llm_lab.estimate.measurements import cache_folder

from .describe import HEADLINES
from .disk import TEMPORARY, bytes_under, remove_folder, write_atomically
from .entries import RUN, claims, describe_count, kind_of, runs_in
from .folder import ROOT, RunFolder, find_run, no_such_run, settle
from .glossary import name_of, write
from .lock import NAME as LOCK
from .lock import hold, in_progress, this_process
from .record import is_number
from .rename import NAME as NAME_OF_A_RUN
from .rename import RENAMING, Renamed, change_name
from .retention import steps_to_keep

CHECKPOINT = "checkpoint"  # a kind of Leftover
KEPT = 4  # checkpoints of a run; the default of train.save_total_limit
MOST_LISTED = 6  # runs that are listed in a sentence
STALE_SECONDS = 600.0  # after which no process is still writing a partial file
CACHES = {
    "tokens": "tokens of datasets, made again when a run needs them",
    "measurements": "measured speeds, measured again when a run starts",
}


def describe_disk_use(root: Path = ROOT) -> str:
    """Return the disk space of the runs and the caches, on one line."""
    cached = sum(bytes_under(cache_folder(name)) for name in CACHES)
    return f"{describe_count(root)}, {size(bytes_under(root))}; caches {size(cached)}"


# --- the list


SHORT_NAMES = {
    "eval_loss": "loss",
    "eval_accuracy": "accuracy",
    "exact_match": "exact match",
    "exact_match_sampled": "exact match",
    "eval_reward_sampled": "reward",
    "relative_logit_difference": "logits differ",
}


def headline_of(results: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the result that summarizes a run: its name and its value."""
    return next(((key, results[key]) for key in HEADLINES if is_number(results.get(key))), None)


def short_result(results: Mapping[str, Any]) -> str:
    """Return the result that summarizes a run in two words, "" if there is none."""
    found = headline_of(results)
    return f"{SHORT_NAMES.get(found[0], name_of(found[0]))} {write(*found)}" if found else ""


def _by_result(entry: Mapping[str, Any]) -> tuple[int, float]:
    found = headline_of(entry["results"])
    if found is None:
        return len(HEADLINES), 0.0
    better_low = found[0] in ("eval_loss", "bits_per_byte", "relative_logit_difference")
    return HEADLINES.index(found[0]), found[1] if better_low else -found[1]


SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "age": lambda entry: -entry["active_at"],
    "name": lambda entry: entry["name"],
    "stage": lambda entry: entry["stage"],
    "status": lambda entry: entry["status"],
    "size": lambda entry: -(entry["parameters"] or 0),
    "disk": lambda entry: -entry["bytes"],
    "result": _by_result,
}


def select(
    entries: Sequence[Mapping[str, Any]], *, stage: str | None, status: str | None, text: str | None, sort: str = "age"
) -> list[Mapping[str, Any]]:
    """Return the entries with a stage, a status, and a text in their name or stage, sorted.

    UserError for a stage or status that none of them has; the error lists the existing ones.
    """
    problems = []
    for option, key, wanted in (("--stage", "stage", stage), ("--status", "status", status)):
        known = sorted({entry[key] for entry in entries})
        if wanted is not None and wanted not in known:
            fix = did_you_mean(wanted, known)
            problems.append(Problem(option, f"no run has this {key}", wanted, one_of(known) or None, fix))
    if problems:
        raise UserError(*problems)
    found = [
        entry
        for entry in entries
        if (stage is None or entry["stage"] == stage)
        and (status is None or entry["status"] == status)
        and (text is None or any(text.lower() in one.lower() for one in (entry["name"], entry["stage"])))
    ]
    return sorted(found, key=SORTS[sort])


# --- deleting


@dataclass(frozen=True)
class Removal:
    """A folder to delete. notes: what depends on it, as sentences."""

    path: Path
    kind: str
    bytes: int
    notes: tuple[str, ...]


def find_folder(name: str, *, root: Path = ROOT) -> tuple[Path, str]:
    """Return the folder in checkpoints/ that a user means, and its kind. A unique prefix is enough.

    UserError if it is outside checkpoints/, or not made by LLM Lab.
    """
    given = Path(name).expanduser()
    path = given if given.exists() else find_run(name, root=root)
    if path is None:
        raise no_such_run(name, root=root)
    home, here = root.resolve(), Path(os.path.abspath(path))
    inside = path.resolve().is_relative_to(home) and path.resolve() != home
    if not inside or path.is_symlink():
        why = "it is a link" if path.is_symlink() else f"it is not inside {root}/"
        raise UserError(
            Problem(name, f"{why}, so LLM Lab does not change it", fix="Use the commands of your system for it.")
        )
    if here.is_relative_to(Path(os.path.abspath(root))):
        path = root / here.relative_to(os.path.abspath(root))
    kind = kind_of(path) or (RUN if _never_started(path) else None)
    if kind is None:
        run = next((one for one in path.parents if kind_of(one)), None)
        why = f"it is a part of {run}" if run else "it was not made by LLM Lab"
        raise UserError(Problem(name, f"{why}, so LLM Lab does not change it", fix=f"Name a run in {root}/."))
    return path, kind


def _never_started(path: Path) -> bool:
    """Return whether a folder is that of a run that was killed before it had written its first files."""
    names = [inner.name for inner in path.iterdir()] if path.is_dir() else ["a file"]
    return "recipe.yaml" in names and all(name == "recipe.yaml" or name.startswith(".") for name in names)


def require_idle(path: Path) -> None:
    """Raise UserError if a process works in a folder, in a run inside it, or in the pipeline that contains it."""
    outer = [folder for folder in path.parents if (folder / "run.json").is_file()]
    for run in (*runs_in(path), *map(RunFolder, outer)):
        if run.status() == "running":
            raise in_progress(run.path, run.facts().get("process") or {})
    for folder in (path, *path.parents):
        for claim in claims(folder) if folder in (path, path.parent) else ():
            raise in_progress(claim, read_object(claim / LOCK) or {})


def plan_removal(name: str, *, root: Path = ROOT) -> Removal:
    """Return what deleting a run means. UserError if it is running or not a run."""
    path, kind = find_folder(name, root=root)
    require_idle(path)
    notes = []
    children = {run.path: run for run, _ in users_of(path, root=root)}
    adapters = sorted(str(one) for one in children if _is_base(path, one))
    others = sorted({str(one) for one in children} - {*adapters})
    if adapters:
        what = "adapter is trained on it, and does" if len(adapters) == 1 else "adapters are trained on it, and do"
        notes.append(f"{len(adapters)} {what} not work without it: {_listed(adapters)}")
    if others:
        they, their = ("it", "its") if len(others) == 1 else ("they", "their")
        count = f"{len(others)} {'other run' if not adapters else 'more run'}{'' if len(others) == 1 else 's'}"
        rest = f"{they} can still be used, but {their} lineage and replay need {path}"
        notes.append(f"{count} made from it: {_listed(others)}; {rest}")
    outer = next((folder for folder in path.parents if folder != root and kind_of(folder)), None)
    if outer is not None:
        notes.append(f"part of the {kind_of(outer)} {outer}, which trains it again if you run it again")
    inner = [run for run in runs_in(path) if run.path != path]
    if inner:
        notes.append(f"with the {len(inner)} {_runs(len(inner))} in it")
    return Removal(path, kind, bytes_under(path), tuple(notes))


def _is_base(folder: Path, run: Path) -> bool:
    """Return whether a run is an adapter whose base model is in a folder."""
    base = find_base(run)
    return base is not None and Path(base).expanduser().resolve().is_relative_to(folder.resolve())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_LISTED]) + (
        f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    )


def _runs(count: int) -> str:
    return "run" if count == 1 else "runs"


def remove(removal: Removal) -> None:
    """Delete a run. After a kill, nothing is left under its name; `gc` deletes the rest. UserError if it is running."""
    require_idle(removal.path)
    with hold(removal.path):
        remove_folder(removal.path)


def users_of(folder: Path, *, root: Path = ROOT) -> Iterator[tuple[RunFolder, Path]]:
    """Yield (run, the path that it names) for the runs outside a folder that were made from something in it."""
    target = folder.resolve()
    for run in runs_in(root):
        if run.path.resolve().is_relative_to(target):
            continue
        for text in named_paths(run.facts()):
            place = in_root(text, root)
            if place is not None and place.resolve().is_relative_to(target):
                yield run, place


def named_paths(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the models and data that run.json names."""
    models = [facts.get("parent"), facts.get("base"), *(facts.get("references") or {}).values()]
    for named in (*models, *(facts.get("data") or ())):
        if isinstance(named, Mapping) and isinstance(named.get("path"), str):
            yield named["path"]


def in_root(text: str, root: Path) -> Path | None:
    """Return where a recorded path now is inside checkpoints/; None if it is elsewhere.

    If the folder with checkpoints/ was moved since, the part of the path from checkpoints/ on counts.
    """
    path = Path(text).expanduser()
    if not path.is_absolute():
        inside = path.is_relative_to(root.name) if root.is_absolute() else path.is_relative_to(root)
        return root / path.relative_to(root.name if root.is_absolute() else root) if inside else None
    if path.resolve().is_relative_to(root.resolve()):
        return root / path.resolve().relative_to(root.resolve())
    if root.name in path.parts and not path.exists():
        place = root.joinpath(*path.parts[path.parts.index(root.name) + 1 :])
        return place if place.exists() else None
    return None


# --- renaming


def check_rename(name: str, new_name: str, *, root: Path = ROOT) -> tuple[Path, Path]:
    """Return (the folder of a run, its folder under another name) without changing anything.

    UserError if the run is running or used by a running one, if the name is taken, or if it is part of another run.
    """
    settle(root)
    old, _ = find_folder(name, root=root)
    new = root / Path(new_name).name
    if Path(new_name) not in (Path(new.name), new) or not NAME_OF_A_RUN.fullmatch(new.name):
        from llm_lab.recipe.fields import IN_WORDS, NAME

        why = "this is not a name for a run"
        allowed = f"{IN_WORDS[NAME]}; the run stays in {root}/"
        raise UserError(Problem("the new name", why, value=new_name, allowed=allowed))
    if old.parent != root:
        outer = next(folder for folder in old.parents if folder.parent == root)
        why = f"it is a part of {outer}, whose recipe names its parts"
        raise UserError(Problem(str(old), why, fix=f"Rename {outer} instead."))
    if new.exists():
        raise UserError(Problem(str(new), "this name is taken", fix="Choose another name."))
    require_idle(old)
    for run, _ in users_of(old, root=root):
        require_idle(run.path)
    return old, new


def rename_run(name: str, new_name: str, *, root: Path = ROOT) -> Renamed:
    """Give a run, a pipeline, a sweep or a study another name. UserError as in check_rename."""
    old, new = check_rename(name, new_name, root=root)
    with hold(root):
        with hold(old):
            record = {"old": old.name, "new": new.name, "process": this_process()}
            write_atomically(root / RENAMING, json.dumps(record) + "\n")
            old.rename(new)
        (new / LOCK).unlink(missing_ok=True)  # the lock was taken under the old name
        return Renamed(old, new, change_name(root, old.name, new.name))


# --- what can be deleted without loss


@dataclass(frozen=True)
class Leftover:
    """Something that is no longer needed, or that is created again when it is needed."""

    path: Path
    what: str
    bytes: int


def find_leftovers(
    names: Sequence[str] = (), *, keep: int | None = None, root: Path = ROOT, caches: bool = True
) -> list[Leftover]:
    """Return what `gc` deletes, largest first.

    For each run that is not running: the checkpoints except the first, the last two and evenly spaced ones between (as
    with train.save_total_limit), and except those that other runs were made from; checkpoints that were set aside;
    partial files. Without names, also the caches: tokens of datasets (unless something is running), measured speeds.
    keep: checkpoints that a run keeps; by default 4, or train.save_total_limit if that is less.
    """
    places = [find_folder(name, root=root)[0] for name in names] or [root]
    runs = [run for place in places for run in runs_in(place)]
    used = {
        place.resolve() for run in runs_in(root) for text in named_paths(run.facts()) if (place := in_root(text, root))
    }
    found: list[Leftover] = []
    for run in runs:
        if run.status() != "running":
            found += _of_run(run, keep, used)
    if not names:
        found += _half_written(root)
    if not names and caches:
        found += _caches(is_busy=any(run.status() == "running" for run in runs))
    return sorted(found, key=lambda one: -one.bytes)


def _of_run(run: RunFolder, keep: int | None, used: Collection[Path]) -> Iterator[Leftover]:
    train = (run.facts().get("recipe") or {}).get("train") or {}
    limit, last = train.get("save_total_limit"), train.get("max_steps")
    most = keep or min(KEPT, limit if isinstance(limit, int) else KEPT)
    points = dict(run.checkpoints())
    kept = steps_to_keep(points.keys(), most, last if isinstance(last, int) else max(points, default=0))
    for step, folder in points.items():
        if step not in kept and folder.resolve() not in used:
            yield _leftover(folder, CHECKPOINT)
    for place in (run.path, run.steps_path):
        for path in place.glob("*.set-aside*"):
            yield _leftover(path, "set aside when the run was resumed from an earlier step")
    for place in (run.path, run.steps_path):
        yield from _half_written(place)


def _half_written(place: Path) -> Iterator[Leftover]:
    for path in place.iterdir() if place.is_dir() else ():
        if TEMPORARY.fullmatch(path.name) and time.time() - path.lstat().st_mtime > STALE_SECONDS:
            yield _leftover(path, "left by a process that was killed")


def _caches(*, is_busy: bool) -> Iterator[Leftover]:
    for name, what in CACHES.items():
        place = cache_folder(name)
        if place.is_dir() and any(place.iterdir()) and not (is_busy and name == "tokens"):
            yield _leftover(place, what)


def _leftover(path: Path, what: str) -> Leftover:
    is_folder = path.is_dir() and not path.is_symlink()
    return Leftover(path, what, bytes_under(path) if is_folder else path.lstat().st_size)


def delete_leftovers(leftovers: Sequence[Leftover]) -> int:
    """Delete these leftovers; return how many bytes that freed. Checkpoints of a run that started again are kept."""
    freed = 0
    for one in leftovers:
        run = next((RunFolder(path) for path in one.path.parents if (path / "run.json").is_file()), None)
        if run is not None and run.status() == "running":
            continue
        if one.path.is_dir() and not one.path.is_symlink():
            if run is not None:
                with run.hold():
                    remove_folder(one.path)
            else:
                shutil.rmtree(one.path, ignore_errors=True)
        else:
            one.path.unlink(missing_ok=True)
        freed += one.bytes
    return freed
