"""Who is compared: found and looked at before any of them is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_lab.errors import LabError, Problem, UserError, did_you_mean
from llm_lab.hf.adapter import is_adapter, read_adapter, require_base
from llm_lab.hf.load import read_config, require_switch, require_writer
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.schema import StageRecipe
from llm_lab.runs.folder import ROOT, RunFolder, find_checkpoint, is_judge, list_runs, run_of

from .own_run import read_run

JUDGE = "it is a reward model: it scores answers and writes none"


@dataclass(frozen=True)
class Candidate:
    """One that is asked. folder: of its weights, or a name on the Hub; numbers: what its run says of this step."""

    name: str
    folder: str
    without_adapter: bool = False
    numbers: dict[str, float] = field(default_factory=dict)


def find_candidates(names: Sequence[str], *, adapter_off: bool = False) -> list[Candidate]:
    """Return the models that names mean. UserError with all that is wrong with them.

    adapter_off: after each adapter, its base without it.
    """
    found: list[Candidate] = []
    problems: list[Any] = []
    for name in names:
        try:
            folder = find_checkpoint(name)
            if adapter_off and is_adapter(folder):
                read_adapter(folder)
                require_switch(folder)
        except UserError as error:
            problems += error.problems
            continue
        if any(candidate.folder == folder for candidate in found):
            problems.append(Problem(name, "it is named twice", fix="Name each checkpoint once."))
        found.append(Candidate(name.rstrip("/"), folder))
        if adapter_off and is_adapter(folder):
            found.append(Candidate(f"{name.rstrip('/')}, adapter off", folder, without_adapter=True))
    if problems:
        raise UserError(*problems)
    if adapter_off and not any(candidate.without_adapter for candidate in found):
        raise UserError(Problem("--adapter-off", "none of these is an adapter", fix="Leave it out."))
    if len(found) < 2:
        fixes = [
            "Name a second checkpoint",
            *(["--adapter-off for its base without it"] if is_adapter(found[0].folder) else []),
            "--steps for all checkpoints of its run",
        ]
        why = "one checkpoint alone can't be compared"
        raise UserError(Problem(names[0], why, fix=", or ".join(fixes)))
    return found


def find_contender(name: str) -> Candidate:
    """Return the model that a name means. UserError where there is none."""
    return Candidate(name.rstrip("/"), find_checkpoint(name))


def find_steps(name: str) -> tuple[list[Candidate], list[str]]:
    """Return the checkpoints of a run in the order of its steps, its model last, and remarks on what was not kept.

    Of a pipeline, those of all its stages that write. name: a run, or the folder of a model in it. UserError where
    there are fewer than two.
    """
    outer = _run_named(name)
    stages = outer.stages() or [outer]
    found: list[Candidate] = []
    remarks: list[str] = []
    for run in stages:
        prefix = f"{run.path.name} " if outer.stages() else ""
        points = _points(run)
        if points and is_judge(points[-1][1]):
            if len(stages) == 1:
                raise UserError(Problem(name, JUDGE))
            continue
        for step, folder in points:
            name_of_point = f"{prefix}step {step:,}" if step or not prefix else prefix.strip()  # a merge has no steps
            found.append(Candidate(name_of_point, str(folder), numbers=_at(run, step)))
        remarks += _remark(run, len(points), prefix)
    if len(found) < 2:
        kept = "one checkpoint" if found else "no checkpoint"
        fix = "Train it with a smaller train.save_steps and a larger train.save_total_limit."
        raise UserError(Problem(name, f"there is {kept} of this run: no time to travel through", fix=fix))
    return found, remarks


def _run_named(name: str) -> RunFolder:
    given = Path(name).expanduser()
    for folder in (given, ROOT / name):
        if folder.is_dir() and (run := run_of(folder.resolve())):
            path = run.path
            return RunFolder(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    if given.is_dir():
        raise UserError(Problem(name, "this is no run of LLM Lab: it has no checkpoints over time"))
    fix = did_you_mean(name, [run.path.name for run in list_runs()]) or "`llm-lab list runs` shows what there is."
    raise UserError(Problem(name, "there is no such run", fix=fix))


def _points(run: RunFolder) -> list[tuple[int, Path]]:
    """Return (step, folder) of what a run kept; its model stands for the checkpoint of its last step."""
    points = run.checkpoints()
    model = run.model_path
    if (model / "config.json").is_file() or (model / "adapter_config.json").is_file():
        last = int(run.facts().get("results", {}).get("step", points[-1][0] if points else 0))
        points = [(step, folder) for step, folder in points if step < last] + [(last, model)]
    return points


def _at(run: RunFolder, step: int) -> dict[str, float]:
    """Return a run's losses at a step: in training the last that was written up to it, in validation at it."""
    numbers: dict[str, float] = {}
    for row in run.metrics():
        if "loss" in row and row["step"] <= step:
            numbers["step_loss"] = row["loss"]
        if "eval_loss" in row and row["step"] == step:
            numbers["step_eval_loss"] = row["eval_loss"]
    return numbers


def _remark(run: RunFolder, kept: int, prefix: str) -> list[str]:
    """Say how to keep more, where a run has saved more checkpoints than are left."""
    try:
        train = read_recipe_file(run.recipe_path).get("train") or {}
        last, every = int(run.facts().get("results", {}).get("step", 0)), int(train["save_steps"])
    except (LabError, OSError, KeyError, TypeError, ValueError):
        return []
    saved = -(-last // every)
    if saved <= kept:
        return []
    limit = train.get("save_total_limit")
    told = f"{prefix or 'The run '}kept the last {kept} of {saved} checkpoints (train.save_total_limit={limit})"
    return [f"{told}; with train.save_total_limit={saved} it keeps them all."]


def require_loadable(candidates: Sequence[Candidate], *, trust_remote_code: bool = False) -> None:
    """Look at all files before any model is loaded for minutes. UserError with everything that is wrong."""
    problems: list[Any] = []
    for folder in dict.fromkeys(candidate.folder for candidate in candidates):
        try:
            rows = _require_loadable(folder, trust_remote_code)
            tokens = len(load_tokenizer(folder, trust_remote_code=trust_remote_code, key="checkpoint"))
            if rows is not None and tokens > rows:
                why = f"its tokenizer has {tokens:,} tokens and the model knows {rows:,}: it is another model's"
                problems.append(Problem(folder, why))
        except LabError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)


def _require_loadable(folder: str, trust_remote_code: bool) -> int | None:
    """Look at one; returns how many tokens a whole model knows."""
    path = Path(folder)
    if is_judge(path):
        raise UserError(Problem(folder, JUDGE, fix="Judge answers with it: score.rewards in a recipe."))
    if is_adapter(path):
        adapter = read_adapter(path, key="checkpoint")
        require_base(adapter, key="checkpoint")
        _require_whole([path / "adapter_model.safetensors"])
        _require_loadable(adapter.base, trust_remote_code)
        return None
    config = read_config(folder, key="checkpoint", trust_remote_code=trust_remote_code)
    require_writer(config, folder, key="checkpoint")
    if path.is_dir():
        _require_weights(path)
    return getattr(config.get_text_config(), "vocab_size", None)


def _require_weights(path: Path) -> None:
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise UserError(Problem(str(index), "this list of weights is broken")) from None
        _require_whole([path / name for name in sorted(names)])
    elif files := sorted(path.glob("*.safetensors")):
        _require_whole(files)
    elif not list(path.glob("pytorch_model*.bin")):
        raise UserError(Problem(str(path), "it holds no weights: it is a design, or a copy that is not whole"))


def _require_whole(files: Sequence[Path]) -> None:
    """Read the heads of files of weights: they say how long the files must be."""
    from safetensors import SafetensorError, safe_open

    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except FileNotFoundError:
            raise UserError(Problem(str(file), "this file of its weights is missing")) from None
        except SafetensorError as error:
            raise UserError(Problem(str(file), f"this file of weights is broken: {error}")) from None


def run_and_recipe(candidate: Candidate) -> tuple[RunFolder, StageRecipe] | None:
    """Return the run that trained a candidate, with its recipe; None where there is none that can be read."""
    try:
        return read_run(candidate.folder)
    except (LabError, OSError):
        return None


def prompts_of_runs(candidates: Sequence[Candidate], *, empty: bool) -> tuple[tuple[str, ...], str]:
    """Return what a candidate's own run asks at its evaluations, and where it stands; () where none does.

    empty: whether all can begin a text from nothing.
    """
    for candidate in candidates:
        found = run_and_recipe(candidate)
        prompts = tuple(text for text in _samples(found[0]) if text or empty) if found else ()
        if prompts:
            return prompts, f"the sample prompts of {found[0].path}"
    return (), ""


def _samples(run: RunFolder) -> Iterator[str]:
    """Yield the prompts that a run's last samples answer."""
    try:
        text = run.samples_path.read_text(encoding="utf-8")
    except OSError:
        return
    last = re.split(r"(?m)^## Step \d+$", text)[-1]
    for match in re.finditer(r"(?ms)^Prompt: `(.*?)`$\n\n> ", last):
        yield "" if match[1] == "(none)" else match[1]


def rewards_of_runs(candidates: Sequence[Candidate]) -> tuple[list[dict[str, Any]], str]:
    """Return the reward terms that a candidate's own run scores with, and which run that is; [] where none does."""
    for candidate in candidates:
        found = run_and_recipe(candidate)
        score = getattr(found[1], "score", None) if found else None
        terms = [term.model_dump(exclude_none=True) for term in score.rewards or ()] if score else []
        if terms and not any("python" in term for term in terms):  # files are run where a recipe is, not here
            return terms, str(found[0].path)
    return [], ""
