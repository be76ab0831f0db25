"""The models of a comparison, found and checked before any of them is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError, suggest
from llm_lab.hf.adapter import is_adapter, read_adapter, require_base
from llm_lab.hf.configs import has_own_code, read_config, require_causal_lm
from llm_lab.hf.load import require_removable_adapter
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.stage import StageRecipe
from llm_lab.runs.folder import ROOT, RunFolder, find_checkpoint, find_run, is_reward_model, list_runs, run_of
from llm_lab.runs.recipe_paths import read_run
from llm_lab.runs.samples import last_prompts

NO_GENERATION = "a reward model can't generate text"


@dataclass(frozen=True)
class Candidate:
    """A model to compare. folder: with its weights, or a Hub name. numbers: its losses from the run's metrics."""

    name: str
    folder: str
    without_adapter: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


def find_candidates(names: Sequence[str], *, adapter_off: bool = False) -> list[Candidate]:
    """Return the models with these names. Raises UserError with the problems of all of them.

    adapter_off: after each adapter, add its base model without it.
    """
    found: list[Candidate] = []
    problems: list[Any] = []
    for name in names:
        try:
            folder = find_checkpoint(name)
            if adapter_off and is_adapter(folder):
                read_adapter(folder)
                require_removable_adapter(folder)
        except UserError as error:
            problems += error.problems
            continue
        if any(candidate.folder == folder for candidate in found):
            problems.append(Problem(name, "this model is named twice", fix="Name each model once."))
        found.append(Candidate(name.rstrip("/"), folder))
        if adapter_off and is_adapter(folder):
            found.append(Candidate(f"{name.rstrip('/')}, adapter off", folder, without_adapter=True))
    if problems:
        raise UserError(*problems)
    if adapter_off and not any(candidate.without_adapter for candidate in found):
        raise UserError(Problem("--adapter-off", "none of these models is an adapter", fix="Remove it."))
    if len(found) < 2:
        fixes = [
            "Name a second model",
            *(["use --adapter-off to add its base model"] if is_adapter(found[0].folder) else []),
            "use --steps to compare all checkpoints of its run",
        ]
        why = "a comparison requires at least two models"
        raise UserError(Problem(names[0], why, fix=", or ".join(fixes)))
    return found


def find_candidate(name: str) -> Candidate:
    """Return the model with this name. Raises UserError if there is none."""
    return Candidate(name.rstrip("/"), find_checkpoint(name))


def find_steps(name: str) -> tuple[list[Candidate], list[str]]:
    """Return the checkpoints of a run in order, its final model last, and remarks on checkpoints that were deleted.

    For a pipeline: the checkpoints of all its stages, without reward models. name: a run, or the folder of a model in
    it. Raises UserError if there are fewer than two.
    """
    outer = _run_named(name)
    stages = outer.stages() or [outer]
    found: list[Candidate] = []
    remarks: list[str] = []
    for run in stages:
        prefix = f"{run.path.name} " if outer.stages() else ""
        points = run.saved_models()
        if points and is_reward_model(points[-1][1]):
            if len(stages) == 1:
                raise UserError(Problem(name, NO_GENERATION))
            continue
        for step, folder in points:
            label = f"{prefix}step {step:,}" if step or not prefix else prefix.strip()  # a merge has no steps
            found.append(Candidate(label, str(folder), numbers=_losses_at(run, step)))
        remarks += _deleted_checkpoints(run, len(points), prefix)
    if len(found) < 2:
        kept = "only one checkpoint" if found else "no checkpoints"
        fix = "Train it with a smaller train.save_steps and a larger train.save_total_limit."
        raise UserError(Problem(name, f"this run has {kept}", fix=fix))
    return found, remarks


def _run_named(name: str) -> RunFolder:
    given = Path(name).expanduser()
    for folder in (given, ROOT / name):
        if folder.is_dir() and (run := run_of(folder.resolve())):
            path = run.path
            return RunFolder(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    if not given.is_dir() and (found := find_run(name)):
        return RunFolder(found)
    if given.is_dir():
        raise UserError(Problem(name, "this folder is not a run of LLM Lab, so it has no earlier checkpoints"))
    fix = suggest(name, [run.path.name for run in list_runs()], f"There are no runs in {ROOT}/ yet.")
    raise UserError(Problem(name, "no such run", fix=fix))


def _losses_at(run: RunFolder, step: int) -> dict[str, float]:
    """Return the last training loss logged up to a step, and the validation loss at it."""
    numbers: dict[str, float] = {}
    for row in run.metrics():
        if "loss" in row and row["step"] <= step:
            numbers["step_loss"] = row["loss"]
        if "eval_loss" in row and row["step"] == step:
            numbers["step_eval_loss"] = row["eval_loss"]
    return numbers


def _deleted_checkpoints(run: RunFolder, kept: int, prefix: str) -> list[str]:
    """If some checkpoints were deleted, return a remark on how to keep all."""
    try:
        train = read_recipe_file(run.recipe_path).get("train") or {}
        facts = run.facts()
        last, every = int(facts.get("results", {}).get("step", 0)), int(train["save_steps"])
        end = last if facts.get("status") == "done" else max(last, int(facts.get("max_steps") or train["max_steps"]))
    except (LabError, OSError, KeyError, TypeError, ValueError):
        return []
    saved, all_saved = -(-last // every), -(-end // every)
    if saved <= kept:
        return []
    limit = train.get("save_total_limit")
    text = f"{prefix or 'The run '}kept {kept} of {saved} checkpoints (train.save_total_limit={limit})"
    if all_saved > saved:
        text += f" so far. It makes {all_saved} in all"
    return [f"{text}; set train.save_total_limit={all_saved} to keep them all."]


def find_trusted(candidates: Sequence[Candidate], *, trust_remote_code: bool, names: Sequence[str]) -> frozenset[str]:
    """Return the folders of the models whose own code the user allows to run.

    names: the models whose code may run. trust_remote_code: without names, allow the only model that has code. Raises
    UserError if several have code.
    """
    unknown = [name for name in names if not any(name.rstrip("/") == candidate.name for candidate in candidates)]
    if unknown:
        allowed = ", ".join(candidate.name for candidate in candidates)
        raise UserError(Problem("--trust-code-of", "this model is not compared", value=unknown[0], allowed=allowed))
    trusted = {c.folder: c.name for c in candidates if c.name in [name.rstrip("/") for name in names]}
    if trust_remote_code and not names:
        trusted = {c.folder: c.name for c in candidates if has_own_code(c.folder)}
        if len(trusted) > 1:
            why = f"several of these models come with code: {', '.join(trusted.values())}"
            fix = f"Review it, then name each model: {' '.join(f'--trust-code-of {name}' for name in trusted.values())}"
            raise UserError(Problem("--trust-remote-code", why, fix=fix))
    return frozenset(trusted)


def require_loadable(candidates: Sequence[Candidate], trusted: frozenset[str] = frozenset()) -> None:
    """Check the files of all models before any is loaded. Raises UserError with all problems.

    trusted: the folders of models whose own code may run.
    """
    problems: list[Any] = []
    for folder in dict.fromkeys(candidate.folder for candidate in candidates):
        try:
            rows = _require_loadable(folder, folder in trusted)
            tokens = len(load_tokenizer(folder, trust_remote_code=folder in trusted, key="checkpoint"))
            if rows is not None and tokens > rows:
                why = f"its tokenizer has {tokens:,} tokens, but the model has {rows:,}: it belongs to another model"
                problems.append(Problem(folder, why))
        except LabError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _require_loadable(folder: str, trust_remote_code: bool) -> int | None:
    """Check one model; return its vocabulary size, or None for an adapter."""
    path = Path(folder)
    if is_reward_model(path):
        raise UserError(Problem(folder, NO_GENERATION, fix="Use it to score answers: score.rewards in a recipe."))
    if is_adapter(path):
        adapter = read_adapter(path, key="checkpoint")
        require_base(adapter, key="checkpoint")
        _require_readable([path / "adapter_model.safetensors"])
        _require_loadable(adapter.base, trust_remote_code)
        return None
    config = read_config(folder, key="checkpoint", trust_remote_code=trust_remote_code)
    require_causal_lm(config, folder, key="checkpoint")
    if path.is_dir():
        _require_weights(path)
    return getattr(config.get_text_config(), "vocab_size", None)


def _require_weights(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise UserError(Problem(str(index), "this weights index is not valid")) from None
        _require_readable([path / name for name in sorted(names)])
    elif files := sorted(path.glob("*.safetensors")):
        _require_readable(files)
    elif not list(path.glob("pytorch_model*.bin")):
        raise UserError(Problem(str(path), "the folder has no weights: it is a config alone, or an incomplete copy"))


def _require_readable(files: Sequence[Path]) -> None:
    """Read the headers of weight files, which also detects truncated files."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except FileNotFoundError:
            raise UserError(Problem(str(file), "this weights file is missing")) from None
        except SafetensorError as error:
            raise UserError(Problem(str(file), f"this weights file is damaged: {error}")) from None


def run_and_recipe(candidate: Candidate) -> tuple[RunFolder, StageRecipe] | None:
    """Return the run that trained a model, and its recipe; None if there is no readable one."""
    try:
        return read_run(candidate.folder)
    except (LabError, OSError):
        return None


def prompts_of_runs(candidates: Sequence[Candidate], *, empty: bool) -> tuple[tuple[str, ...], str]:
    """Return the sample prompts of the first model's run that has some, and their source; () if none has.

    empty: whether empty prompts are allowed.
    """
    for candidate in candidates:
        found = run_and_recipe(candidate)
        prompts = tuple(text for text in last_prompts(found[0]) if text or empty) if found else ()
        if found and prompts:
            return prompts, f"the sample prompts of {found[0].path}"
    return (), ""


def rewards_of_runs(candidates: Sequence[Candidate]) -> tuple[list[dict[str, Any]], str]:
    """Return the reward terms of the first model's run that scores prompts, and that run; [] if none does."""
    for candidate in candidates:
        found = run_and_recipe(candidate)
        score = getattr(found[1], "score", None) if found else None
        terms = [term.model_dump(exclude_none=True) for term in score.rewards or ()] if score else []
        if found and terms and not any("python" in term for term in terms):  # user code runs only for its own recipe
            return terms, str(found[0].path)
    return [], ""
