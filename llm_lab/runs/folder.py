"""The run folder: recipe.yaml, run.json, metrics.jsonl, samples.md, report.md, model/, steps/."""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import shutil
import time
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError, did_you_mean, suggest
from llm_lab.estimate.gguf_header import SUFFIX, file_on_the_hub, how_to_download, is_gguf
from llm_lab.safe_text import redact_values

from . import manifest
from .disk import TEMPORARY, append_line, remove_folder, write_atomically
from .lock import hold, is_at_work
from .record import read_facts, row_of
from .rename import RENAMING, complete_rename

ROOT = Path("checkpoints")
# Models on the Hub without an owner in their names; new ones always have one.
OLD_HUB_NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
EVALUATES_FIRST = "first_evaluation_at"  # in run.json: when a stage began to measure its model before the first step
# Columns of metrics.jsonl that describe the progress of a run, so they are not results.
_NOT_RESULTS = {"step", "learning_rate", "grad_norm", "tokens_per_second", "epochs", "mix"}


def settle(root: Path = ROOT) -> None:
    """Complete a rename that was killed. Called before runs are looked up by name."""
    if (root / RENAMING).exists():
        with suppress(OSError):  # read-only runs are read as they are
            complete_rename(root)


def free_names(path: Path) -> Iterator[Path]:
    """Yield names that are not taken: the given one, then with numbers."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(2))
    return (name for name in itertools.chain([path], numbered) if not name.exists())


@dataclass(frozen=True)
class RunFolder:
    """One run on disk. It stores only the path; every call reads the files."""

    path: Path

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples_path(self) -> Path:
        return self.path / "samples.md"

    @property
    def report_path(self) -> Path:
        return self.path / "report.md"

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def steps_path(self) -> Path:
        return self.path / "steps"

    def facts(self) -> dict[str, Any]:
        """Read run.json; {} if there is none yet, or if it can't be read (see `damage`)."""
        return read_facts(self.run_json)[0]

    def damage(self) -> str | None:
        """Return why run.json can't be read, or None."""
        return read_facts(self.run_json)[1]

    def update(self, **facts: Any) -> None:
        """Write facts into run.json, without secrets. A file that can't be read is kept as run.json.broken."""
        if self.damage():
            os.replace(self.run_json, next(free_names(self.run_json.with_name("run.json.broken"))))
        known = {**self.facts(), **redact_values(facts)}
        write_atomically(self.run_json, json.dumps(known, indent=2, ensure_ascii=False) + "\n")

    def write_recipe(self, text: str) -> None:
        write_atomically(self.recipe_path, text)

    def has_started(self) -> bool:
        """Return whether the run got as far as run.json, the second of its files."""
        return self.run_json.is_file() and self.recipe_path.is_file()

    def has_progress(self) -> bool:
        """Return whether there is anything that a resumed run can continue from."""
        own = self.checkpoints() or self.metrics() or self.facts().get("export")
        return bool(own) or any(stage.has_progress() for stage in self.stages())

    def starts_over(self) -> bool:
        """Return whether resuming the run repeats all of its training, because it has no checkpoint."""
        return not (self.checkpoints() or any(stage.has_progress() for stage in self.stages()))

    def delete_temporary(self) -> None:
        """Delete what a killed process left unfinished."""
        for place in (self.path, self.steps_path):
            for path in place.iterdir() if place.is_dir() else ():
                if TEMPORARY.fullmatch(path.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def status(self) -> str:
        """Return done, stopped, failed, running, or interrupted if the process that ran it no longer exists.

        broken: run.json can't be read. unknown: it does not have a status.
        """
        return status_of(self.path, *read_facts(self.run_json))

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock of the run while it works. UserError if another process works in it."""
        facts = self.facts()
        return hold(self.path, facts.get("process") if facts.get("status") == "running" else None)

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl, or nothing (OSError) on a full disk."""
        append_line(self.metrics_path, json.dumps(redact_values(row)))

    def metrics(self) -> list[dict[str, Any]]:
        """Read metrics.jsonl; lines that can't be read are skipped."""
        return [row for _, row in self._lines() if row is not None]

    def broken_metrics(self) -> list[int]:
        """Return the numbers of the lines of metrics.jsonl that can't be read, except a last one that was cut off."""
        return [number for number, row in self._lines() if row is None]

    def _lines(self) -> Iterator[tuple[int, dict[str, Any] | None]]:
        if not self.metrics_path.exists():
            return
        *lines, last = self.metrics_path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            yield number, row_of(line)
        if row := row_of(last):
            yield len(lines) + 1, row

    def forget_after(self, step: int) -> None:
        """Delete metrics and samples of steps after `step`: a resumed run repeats them."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        write_atomically(self.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
        if self.samples_path.exists():
            write_atomically(self.samples_path, "".join(text for at, text in self.samples() if at <= step))

    def samples(self) -> list[tuple[int, str]]:
        """Return (step, text with its heading) of the samples of every evaluation, in the order of samples.md."""
        try:
            parts = re.split(r"(?m)^(?=## Step \d+$)", self.samples_path.read_text(encoding="utf-8"))
        except OSError:
            return []
        headings = [(re.match(r"## Step (\d+)\n", part), part) for part in parts]
        return [(int(heading[1]), part) for heading, part in headings if heading]

    def results_at(self, step: int) -> dict[str, Any]:
        """Return the last value of each metric up to a step, and the median speed."""
        rows = [row for row in self.metrics() if row["step"] <= step]
        found: dict[str, Any] = {"step": step}
        for row in rows:
            found |= {name: value for name, value in row.items() if name not in _NOT_RESULTS}
        speeds = sorted(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
        return found | ({"tokens_per_second": speeds[len(speeds) // 2]} if speeds else {})

    def keep_results(self, step: int) -> None:
        """Write the results at the step of the newest checkpoint into run.json."""
        found, before = self.results_at(step), self.facts().get("results", {})
        peaks = [results["memory_bytes"] for results in (before, found) if "memory_bytes" in results]
        self.update(results=found | ({"memory_bytes": max(peaks)} if peaks else {}))

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of every complete checkpoint, oldest first."""
        found = []
        if self.steps_path.is_dir():
            for folder in self.steps_path.iterdir():
                match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
                if match and any((folder / name).exists() for name in ("trainer_state.json", manifest.NAME)):
                    found.append((int(match[1]), folder))
        return sorted(found)

    def saved_models(self) -> list[tuple[int, Path]]:
        """Return (step, folder) of each checkpoint, oldest first; the last one is the final model, if there is one."""
        points = self.checkpoints()
        model = self.model_path
        is_model = (model / "config.json").is_file() or (model / "adapter_config.json").is_file()
        if is_model and not (points and self.is_ahead_of_model()):
            last = int(self.facts().get("results", {}).get("step", points[-1][0] if points else 0))
            points = [(step, folder) for step, folder in points if step < last] + [(last, model)]
        return points

    def is_ahead_of_model(self) -> bool:
        """Whether there is a model/ that was written before the run was resumed."""
        return self.facts().get("status") in ("running", "failed")

    def stages(self) -> list[RunFolder]:
        """Return the stage runs inside a pipeline's folder, in order."""
        return [RunFolder(self.path / name) for name in self.facts().get("stages", [])]


def status_of(path: Path, facts: Mapping[str, Any], damage: str | None) -> str:
    """Return the status of the run at a path whose run.json has been read already. See RunFolder.status."""
    status = str(facts.get("status", "broken" if damage else "unknown"))
    return "interrupted" if status == "running" and not is_at_work(path, facts.get("process", {})) else status


def create_run(name: str, *, root: Path = ROOT, overwrite: bool = False) -> RunFolder:
    """Create a new run folder; a number is added to a name that is taken, so that no run is lost.

    overwrite: replace the run of that name, unless it is running.
    """
    path = root / name
    if overwrite and path.exists():
        run = RunFolder(path)
        if not run.facts():
            raise UserError(Problem(str(path), "the folder is not an LLM Lab run, so it is not overwritten"))
        with run.hold():
            remove_folder(path)
    number = 1
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                path.mkdir()
                return RunFolder(path)
            except FileExistsError:
                number += 1
                path = root / f"{name}-{number}"
    except OSError as error:
        raise UserError(Problem(str(path), f"the run folder can't be created: {error.strerror}")) from None


def free_name(name: str, *, root: Path = ROOT) -> str:
    """Return the folder name of a new run: a number is added to a name that is taken."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if not (root / one).exists())


def runs_named(name: str, *, root: Path = ROOT) -> list[RunFolder]:
    """Return the runs started under a name, including those that got a number, oldest first."""
    numbered = re.compile(re.escape(name) + r"-\d+")
    found = [
        run
        for run in list_runs(root)
        if run.path.name == name or (numbered.fullmatch(run.path.name) and run.facts().get("asked_name", name) == name)
    ]
    return sorted(found, key=lambda run: run.facts().get("created_at", 0))


def unstarted_runs(name: str, *, root: Path = ROOT) -> list[RunFolder]:
    """Return the folders with a name whose run was killed before it had written its first files."""
    numbered = re.compile(rf"{re.escape(name)}(-\d+)?")
    return [
        RunFolder(path)
        for path in (root.iterdir() if root.is_dir() else ())
        if numbered.fullmatch(path.name)
        and path.is_dir()
        and all(inner.name == "recipe.yaml" or inner.name.startswith(".") for inner in path.iterdir())
    ]


def list_runs(root: Path = ROOT) -> list[RunFolder]:
    """Return every run under a folder, the most recently active first."""
    settle(root)
    runs = [RunFolder(path) for path in root.iterdir() if (path / "run.json").is_file()] if root.is_dir() else []
    return sorted(runs, key=lambda run: -last_active(run.facts()))


def last_active(facts: Mapping[str, Any]) -> float:
    """Return when a run ended or, before that, was created, in seconds; 0.0 if unknown."""
    times = (facts.get(key) for key in ("ended_at", "created_at"))
    return next((time for time in times if isinstance(time, int | float)), 0.0)


def find_run(name: str, *, root: Path = ROOT) -> Path | None:
    """Return the folder in checkpoints/ that a name means; each part of it may be a unique prefix of a run's name.

    An exact name wins. None if there is no such folder; UserError if a prefix fits several runs.
    """
    settle(root)
    folder = root
    for part in Path(name).relative_to(root).parts if Path(name).is_relative_to(root) else Path(name).parts:
        if part in ("/", "..") or not folder.is_dir():
            return None
        if not (folder / part).exists():
            near = sorted(path.name for path in folder.glob(f"{glob.escape(part)}*") if _is_work(path))
            if len(near) > 1:
                why = f"{len(near)} runs begin with it"
                raise UserError(Problem(name, why, allowed=", ".join(near), fix="Write more of the name."))
            if not near:
                return None
            part = near[0]
        folder /= part
    return folder if folder != root else None


def _is_work(path: Path) -> bool:
    """Return whether a folder is a run, or a sweep."""
    return path.is_dir() and ((path / "run.json").is_file() or (path / "sweep.json").is_file())


def no_such_run(name: str, *, root: Path = ROOT) -> UserError:
    """Return the error for a name that no run has."""
    names = sorted(path.name for path in (root.iterdir() if root.is_dir() else ()) if _is_work(path))
    fix = did_you_mean(name, [*(f"{root}/{one}" for one in names), *names])
    if not fix and (remote := file_on_the_hub(name)):
        fix = f"If it is a file on the Hub, download it. {how_to_download(*remote)}"
    fix = fix or suggest(name, names, f"There are no runs in {root}/ yet.")
    return UserError(Problem(name, "there is no such run or model", fix=fix))


def find_model(path: str | Path, *, root: Path = ROOT) -> Path:
    """Return the Hugging Face folder that a user means with a run, its name, model/, or checkpoint-N.

    A GGUF file is returned as it is.
    UserError if there is nothing to load.
    """
    settle(root)
    given = Path(path).expanduser()
    candidates = [given] if given.exists() else [given, root / given]
    if not any(candidate.exists() for candidate in candidates) and (run := find_run(str(path), root=root)):
        candidates = [run]
    for candidate in candidates:
        for folder in _model_folders(candidate):
            if (folder / "config.json").exists() or (folder / "adapter_config.json").exists():
                require_no_links(folder)
                return folder
    from llm_lab.recipe.files import MODELS, refuse_file
    from llm_lab.recipe.registry import stage_of

    existing = next((c for c in candidates if c.exists()), None)
    if existing is not None and (files := _gguf_files(existing)):
        require_no_links(files[0].parent)
        if len(files) > 1:
            listed = ", ".join(str(file) for file in files)
            raise UserError(Problem(str(path), "it holds several GGUF files", allowed=listed, fix="Name one of them."))
        return files[0]
    if existing is not None:
        why, fix = "no model has been saved here yet", "A run has a model once it has saved its first checkpoint."
        if existing.is_dir() and not any((existing / name).exists() for name in ("run.json", "recipe.yaml")):
            why, fix = "this folder is neither a run nor a model", f"Your runs are in {root}/."
        if inner := [run.path for run in list_runs(existing) if run.saved_models()]:
            why = "this folder holds several runs, such as those of a study, and no model of its own"
            fix = f"Name one of them: {', '.join(map(str, inner))}."
        stage = stage_of(RunFolder(existing).facts())
        if stage is not None and stage.makes is None:
            why, fix = (
                "this run only evaluated a model; it did not make one",
                f"Use the model it evaluated: {_source_of(existing)}",
            )
        if existing.is_file():
            if existing.suffix.lower() not in MODELS and (error := refuse_file(existing, "a model")):
                raise error
            why, fix = "this file is not a model", "Name a run, a folder with config.json, or a GGUF file."
        raise UserError(Problem(str(path), why, fix=fix))
    raise no_such_run(str(path), root=root)


def _gguf_files(path: Path) -> list[Path]:
    """Return the GGUF files at a path: the file itself, or those in an export's folder or run."""
    if path.is_file():
        return [path] if is_gguf(path) else []
    return [file for folder in (path, path / "gguf") for file in sorted(folder.glob(f"*{SUFFIX}"))]


def _source_of(path: Path) -> str | None:
    """Return the model that an export was made from."""
    for folder in (path if path.is_dir() else path.parent, *path.parents[:2]):
        if parent := RunFolder(folder).facts().get("parent"):
            return parent.get("path")
    return None


def require_no_links(path: Path) -> None:
    """Raise UserError for a symbolic link in the run that a path belongs to, if it points outside the run.

    LLM Lab does not create links. A run from elsewhere could use them to make it write to, delete or publish other
    files. The cache of the Hub consists of links, and is not a run.
    """
    run = next((folder for folder in (path, *path.parents[:2]) if _has_record(folder)), None)
    if run is None:
        return
    home = run.resolve()
    for folder, folders, files in os.walk(run):
        folders[:] = [name for name in folders if name != "wandb"]  # wandb's own logs, which are not read here
        for name in (*folders, *files):
            link = Path(folder, name)
            if link.is_symlink() and not link.resolve().is_relative_to(home):
                why = f"it is a link to {os.readlink(link)}, outside of the run, which is not followed"
                raise UserError(Problem(str(link), why, fix="Replace it by a copy of what it points to, or delete it."))


def _has_record(folder: Path) -> bool:
    return (folder / "run.json").is_file() or (folder / "run.json").is_symlink()


def find_checkpoint(name: str, *, root: Path = ROOT) -> str:
    """Return the Hugging Face folder that a user means, or the name itself if it can only be one on the Hub."""
    local = Path(name).expanduser()
    looks_like_hub = (name.count("/") == 1 and not name.startswith((".", "~", "/"))) or name in OLD_HUB_NAMES
    looks_like_hub = looks_like_hub and not local.exists()
    is_run = (root / name).parent.is_dir() and find_run(name, root=root) is not None
    if not looks_like_hub or is_run or name.startswith(f"{root}/"):
        return str(find_model(name, root=root))
    return name


def _model_folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        return
    run = RunFolder(path)
    for stage in reversed(run.stages()):
        yield from (folder for folder in _model_folders(stage.path) if not is_reward_model(folder))
    newest_first = [folder for _, folder in reversed(run.checkpoints())]
    if run.is_ahead_of_model():
        yield from newest_first
    yield run.model_path
    yield path
    yield path / "space" / "model"  # for an export to a Space
    yield from newest_first


def run_of(folder: str | Path) -> RunFolder | None:
    """Return the run that a folder belongs to: model/, steps/checkpoint-N or the run folder itself."""
    folder = Path(folder)
    return next((RunFolder(path) for path in (folder, *folder.parents[:2]) if (path / "run.json").is_file()), None)


def is_reward_model(folder: Path) -> bool:
    """Whether a folder holds a reward model, which scores text and can't generate it."""
    for name, key, mark in (
        ("config.json", "architectures", "ForSequenceClassification"),
        ("adapter_config.json", "task_type", "SEQ_CLS"),
    ):
        try:
            if mark in str(json.loads((folder / name).read_text(encoding="utf-8")).get(key)):
                return True
        except (OSError, ValueError, AttributeError):
            continue
    return False


def slug(text: str, default: str = "") -> str:
    """Turn a text into a name for a file, a run or a repository: at most 80 letters, digits and ._-

    Letters with accents lose them.
    """
    text = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    text = "".join(letter for letter in text if not unicodedata.combining(letter))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:80] or default


def now() -> float:
    """Return the seconds since the epoch."""
    return time.time()
