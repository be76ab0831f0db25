"""Whether a run can resume, and where: at its newest checkpoint or an earlier one.

Every file of the checkpoint must be as it was written, and the inputs of the run must be the same: the model that it
started from, and the other models and files that its recipe names. The number of processes may differ if they can share
the rows of a step evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import places_after_move, settings_digest, weights_digest
from llm_lab.estimate.batch_warmup import AT_FIRST
from llm_lab.estimate.cached_models import cached_files, changed_files
from llm_lab.estimate.gguf_header import is_gguf

from .folder import RunFolder, free_names
from .lineage import PARENT, file_digest
from .manifest import find_damage
from .processes import process_count

MANIFESTS_FROM = "manifests_from_step"  # in run.json: from this step on, every checkpoint has a manifest
START = 0
BATCH = "batch"  # in run.json: rows and batches of a step in each process, if they differ from the recipe's
ROWS, BATCHES = "per_device_train_batch_size", "gradient_accumulation_steps"


@dataclass(frozen=True)
class Batch:
    """How a process reads its rows of a step: `rows` at a time, `batches` times.

    multiple: the rows must be a multiple of it; a growing batch starts with some of them.
    """

    rows: int
    batches: int
    multiple: int = 1

    def smaller(self) -> Batch | None:
        """Return the next smaller batch with the same rows per step, None if it has one row."""
        whole = self.rows // self.multiple
        factor = next((n for n in range(2, whole + 1) if whole % n == 0), None)
        return Batch(self.rows // factor, self.batches * factor, self.multiple) if factor else None

    def shared(self, before: int, now: int) -> Batch | None:
        """Return the batch with which `now` processes read the same rows per step as `before` of this one, or None.

        It has at most as many rows at a time, and a divisor of them, so that a rollout can also be divided.
        """
        each, rest = divmod(self.rows * self.batches * before, now)
        allowed = range(self.multiple, self.rows + 1, self.multiple)
        fitting = [rows for rows in allowed if self.rows % rows == 0 and each % rows == 0]
        return Batch(fitting[-1], each // fitting[-1], self.multiple) if not rest and fitting else None


def batch_of(recipe: Any) -> Batch:
    """Return the batch in the recipe of a stage that trains."""
    return _batch_of(recipe.train.model_dump())


def _batch_of(train: Mapping[str, Any]) -> Batch:
    return Batch(train[ROWS], train[BATCHES], AT_FIRST if train.get("batch_size_warmup_steps") else 1)


def with_batch(recipe: Any, batch: Batch) -> Any:
    """Return a recipe with another batch."""
    train = recipe.train.model_copy(update={ROWS: batch.rows, BATCHES: batch.batches})
    return recipe.model_copy(update={"train": train})


def batch_to_resume(run: RunFolder, recipe: Batch) -> tuple[Batch | None, int]:
    """Return (the batch of each process for the rest of a run, the previous number of processes).

    recipe: the recipe's batch. None if the processes can't share the rows of a step.
    """
    facts = run.facts()
    known, before = facts.get(BATCH), facts.get("processes", process_count())
    if isinstance(known, Mapping):
        recipe = replace(recipe, rows=known["rows"], batches=known["batches"])
        before = known.get("processes", before)
    return recipe.shared(before, process_count()), before


def resume_command(run: RunFolder, options: str = "--resume") -> str:
    """Return the command that resumes a run, or the pipeline that it belongs to."""
    outer = RunFolder(run.path.parent)
    named = outer if run.path.name in (outer.facts().get("stages") or ()) else run
    nproc = f" --nproc {process_count()}" if process_count() > 1 else ""
    return f"llm-lab run {named.recipe_path} {options}{nproc}"


def what_is_saved(run: RunFolder) -> str:
    """Describe what is saved of a run that was stopped at once, and how to resume it."""
    how = "Resume" if run.checkpoints() else "Start again"
    return f"Stopped at once. {last_checkpoint(run)} {how}: {resume_command(run)}"


def last_checkpoint(run: RunFolder) -> str:
    """Return a sentence about the last complete checkpoint of a run, or that there is none."""
    step = max((step for step, _ in run.checkpoints()), default=START)
    return "No checkpoint is saved." if step == START else f"The checkpoint of step {step:,} is saved."


def after_a_full_disk(run: RunFolder) -> str:
    """Return what is saved of a run that ended because the disk was full, and how to continue."""
    how = "then" if run.checkpoints() else "then start again"
    return f"{last_checkpoint(run)} Free some space, {how}: {resume_command(run)}"


def require_resume_point(run: RunFolder, step: int | None = None) -> tuple[int, list[str]]:
    """Return the step from which a run resumes, and remarks on its checkpoint. Step 0 is the start.

    step: the requested one; by default that of the newest checkpoint. UserError if there is no such checkpoint, or a
    file of it is damaged; the error offers the newest complete checkpoint before it.
    """
    known = dict(run.checkpoints())
    wanted = require_checkpoint(run, step)
    if wanted == START:
        return START, []
    damage = _damage(run, wanted, known[wanted])
    if damage is None:
        unchecked = wanted < _manifests_from(run)
        return wanted, [f"{known[wanted]} has no manifest, so its files can't be checked"] if unchecked else []
    before = (one for one in sorted(known, reverse=True) if one < wanted and not _damage(run, one, known[one]))
    earlier = next(before, START)
    where = f"from the checkpoint of step {earlier}, which is complete" if earlier else "from the start"
    fix = f"Resume {where}: {resume_command(run, f'--resume-from {earlier}')}"
    file, _, why = damage.partition(" ")
    raise UserError(Problem(file, why, fix=fix))


def require_checkpoint(run: RunFolder, step: int | None = None) -> int:
    """Return the step from which a run resumes. Raises UserError if it has no checkpoint of the requested step."""
    known = sorted(number for number, _ in run.checkpoints())
    if step is None:
        return known[-1] if known else START
    if step not in (START, *known):
        steps = ", ".join(map(str, known)) or "none"
        why = f"{run.path} has no checkpoint of this step"
        raise UserError(Problem("--resume-from", why, value=step, allowed=f"{steps}, or 0 for the start"))
    return step


def require_same_beginning(run: RunFolder, *, files_of: Callable[[str], Mapping[str, str]] = cached_files) -> None:
    """Raise UserError if inputs of a run are different now; the error lists all of them.

    files_of: returns {file: its id} of a model on the Hub.
    """
    facts, fix = run.facts(), "Restore it, or start a new run without --resume."
    problems = []
    train = (facts.get("recipe") or {}).get("train") or {}
    if train.get(ROWS) and train.get(BATCHES):
        batch, before = batch_to_resume(run, _batch_of(train))
        if batch is None:
            why = (
                f"{process_count()} processes can't share the sequences of a step evenly; until now there were {before}"
            )
            how = f"Resume with --nproc {before}." if before > 1 else "Resume without --nproc."
            problems.append(Problem("--nproc", why, value=process_count(), fix=how))
    for key, known in _recorded(facts):
        if known.get("files") and (changed := changed_files(known["files"], files_of(known["path"]))):
            why = f"{', '.join(changed[:3])} changed on the Hub since the run in {run.path} began"
            at = f"revision {known['revision'][:12]}" if known.get("revision") else "an earlier revision"
            how = f"It began with {at}. Start a new run."
            problems.append(Problem(key, why, value=known["path"], fix=how))
        for name, now in (("weights", weights_digest), ("files", settings_digest)):
            then = known.get("digest" if name == "weights" else "settings")
            place = _find_again(run, known)
            found = now(place) if not place.is_file() or is_gguf(place) else file_digest(place)
            if then is not None and found is not None and found != then:
                what = "this file has" if place.is_file() else f"its {name} have"
                why = f"{what} changed since the run in {run.path} began"
                problems.append(Problem(key, why, value=str(place), fix=fix))
    if problems:
        raise UserError(*problems)


def _recorded(facts: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (dotted key, record) for each model and file that a run started with."""
    yield from (facts.get("references") or {}).items()
    if facts.get("parent"):
        yield PARENT, facts["parent"]


def _find_again(run: RunFolder, known: Mapping[str, Any]) -> Path:
    """Return the current place of a recorded model or file, which may have moved together with the run."""
    given = Path(known["path"]).expanduser()
    return next((place for place in (given, *places_after_move(run.path, given)) if place.exists()), given)


def _damage(run: RunFolder, step: int, checkpoint: Path) -> str | None:
    return find_damage(checkpoint, has_manifest=step >= _manifests_from(run))


def _manifests_from(run: RunFolder) -> float:
    return run.facts().get(MANIFESTS_FROM, float("inf"))


def set_aside_after(run: RunFolder, step: int) -> list[Path]:
    """Rename the checkpoints after a step, and the model made from them, so that they no longer count as the run's.

    Returns their new names.
    """
    newer = [folder for number, folder in run.checkpoints() if number > step]
    if newer and run.model_path.exists():
        newer.append(run.model_path)
    return [folder.rename(next(free_names(folder.with_name(f"{folder.name}.set-aside")))) for folder in newer]
