"""LLM Lab from Python: each stage as a function that shows its plan, runs, and returns a Run."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from llm_lab.errors import Problem, UserError, did_you_mean, one_of
from llm_lab.recipe.dpo import DPO
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.export import EXPORT
from llm_lab.recipe.grpo import GRPO
from llm_lab.recipe.merge import MERGE
from llm_lab.recipe.ppo import PPO
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.reward import REWARD
from llm_lab.recipe.sft import SFT

if TYPE_CHECKING:
    from llm_lab.recipe.stage import Stage
    from llm_lab.recipe.what_fits import LibraryEntry
    from llm_lab.run_result import Compared, Run

Model = str | PathLike[str]  # a run, a folder, a GGUF file, or a name on the Hub
Data = Any  # a path or name, {"path": ..., ...}, or a list of these
Keys = Mapping[str, Any] | None  # recipe keys, dotted or short
INNER_LIST = ".N."


def pretrain(data: Data, model: Any = None, keys: Keys = None, **options: Any) -> Run:
    """Pretrain a model on texts; returns the run.

    model: a preset size such as "nano", parts as a dict, a config.json, or a checkpoint to continue from; None: the
    default size. keys, options: recipe keys, see `sft`.
    """
    given = {} if model is None else {"model": _model_to_pretrain(model)}
    return _run(PRETRAIN, {"data": _sources(data), **given}, keys, options)


def sft(model: Model, data: Data, keys: Keys = None, **options: Any) -> Run:
    """Fine-tune a model on conversations; prints the plan, trains, and returns the run.

    model: a run, a folder, a GGUF file, or a name on the Hub. data: a file, folder, glob, builtin:NAME or Hub name, a
    dict with "path" and other keys of a dataset, or a list of these. options: recipe keys by their short name
    (learning_rate=1e-4), if only one key has it; keys: a dict of dotted keys ({"score.prompts": 50}). overwrite=True
    replaces a run of the same name. Raises UserError with every problem before anything is written, and MachineError if
    this machine lacks something.
    """
    return _tune(SFT, model, data, keys, options)


def reward(model: Model, data: Data, keys: Keys = None, **options: Any) -> Run:
    """Train a reward model on preferences; arguments and result as for `sft`."""
    return _tune(REWARD, model, data, keys, options)


def dpo(model: Model, data: Data, keys: Keys = None, **options: Any) -> Run:
    """Train on preferences with DPO; arguments and result as for `sft`."""
    return _tune(DPO, model, data, keys, options)


def grpo(model: Model, data: Data, rewards: Any = "exact_number", keys: Keys = None, **options: Any) -> Run:
    """Train with GRPO on rewards for the model's own outputs; arguments and result as for `sft`.

    rewards: a built-in reward function, a reward model, file.py:function, a dict of a term's keys, or a list of these.
    """
    return _tune(GRPO, model, data, keys, options, rewards=_rewards(rewards))


def ppo(model: Model, data: Data, rewards: Any = "exact_number", keys: Keys = None, **options: Any) -> Run:
    """Train with PPO on rewards for the model's own outputs; arguments and result as for `grpo`."""
    return _tune(PPO, model, data, keys, options, rewards=_rewards(rewards))


def merge(adapter: Model, keys: Keys = None, **options: Any) -> Run:
    """Merge a LoRA adapter into its base; returns the run with the whole model. keys, options: recipe keys."""
    return _run(MERGE, {"model": _checkpoint(adapter)}, keys, options)


def export(model: Model, to: str = "hf", keys: Keys = None, **options: Any) -> Run:
    """Write a model as a Hugging Face folder, a GGUF file or a Space, verify it, and return the run.

    to: hf, gguf or space. keys, options: recipe keys, such as weights="q8_0" or push="me/name".
    """
    return _run(EXPORT, {"model": _checkpoint(model), EXPORT.name: {"to": to}}, keys, options)


def evaluate(model: Model, data: Data = None, keys: Keys = None, **options: Any) -> dict[str, Any]:
    """Measure a model and save the results with it; returns them by name.

    data: texts whose loss is measured; if nothing to measure is given, the validation data of the model's own run.
    keys, options: recipe keys, such as score={"path": "builtin:word-problems"} or tasks={"names": ["arc_easy"]}.
    trust_remote_code=True runs the code that comes with a model.
    """
    from llm_lab.job import check
    from llm_lab.recipe.resolve import require_device
    from llm_lab.recipe.trust import allow

    trusted = options.pop("trust_remote_code", False)
    given: dict[str, Any] = {"model": _checkpoint(model)}
    if data is not None:
        given["data"] = _sources(data)
    job = check(recipe_of(EVAL, given, keys, options))
    require_device(job.stages[0])
    allow(job.code())
    from llm_lab.stages.eval import evaluate
    from llm_lab.terminal.progress import show_progress

    recipe: Any = job.stages[0].recipe
    with show_progress() as listener:
        return evaluate(recipe, listener, trust_remote_code=trusted)


def compare(
    *models: Model,
    prompts: str | Sequence[str] = (),
    data: Sequence[str] = (),
    prompt_set: str | None = None,
    steps: bool = False,
    adapter_off: bool = False,
    device: str | None = None,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Compared:
    """Compare models side by side: their answers to prompts, and their loss on text; printed or shown in a notebook.

    steps: compare all checkpoints of one run. adapter_off: after each adapter, add its base model without it.
    prompt_set: a dataset of prompts whose outputs are scored. settings: max_new_tokens, temperature, top_p, seed.
    """
    from llm_lab.run_result import compare_models

    return compare_models(
        [fspath(model) for model in models],
        [prompts] if isinstance(prompts, str) else prompts,
        settings=settings,
        device=device,
        data=[data] if isinstance(data, str) else data,
        prompt_set=prompt_set,
        steps=steps,
        adapter_off=adapter_off,
        trust_remote_code=trust_remote_code,
    )


class ModelList(list["LibraryEntry"]):
    """The models of the library, with what fits on this machine."""

    @property
    def table(self) -> Any:
        """One row for each model, as a pandas DataFrame."""
        import pandas

        return pandas.DataFrame([_described(entry) for entry in self])

    def __repr__(self) -> str:
        from llm_lab.terminal.console import make_console
        from llm_lab.terminal.listing import print_library

        console = make_console()
        with console.capture() as captured:
            print_library(console, self)
        return captured.get().rstrip()

    def _repr_html_(self) -> str:
        from llm_lab.run_result import html_table

        rows = [list(_described(entry).values()) for entry in self]
        return html_table(list(_described(self[0])), rows)


def models() -> ModelList:
    """Return the model library: models to start from, and what can be trained on this machine."""
    from llm_lab.recipe.what_fits import library

    return ModelList(library())


def _described(entry: LibraryEntry) -> dict[str, Any]:
    model = entry.model
    gated = {True: "yes", False: "no", None: "perhaps"}[model.gated]
    facts = {"name": model.name, "kind": "chat" if model.is_chat else "base", "parameters": f"{model.parameters:,}"}
    facts |= {"context": f"{model.context:,}", "license": model.license, "gated": gated}
    return facts | {"what fits": entry.reason, "note": model.note}


# --- recipes


def recipe_of(stage: Stage, given: Mapping[str, Any], keys: Keys, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a stage from the arguments of a function.

    given: keys from the function's own arguments. keys, options: recipe keys, dotted or by a short name that only one
    key of the stage has. Raises UserError with all keys that are unknown or ambiguous.
    """
    raw: dict[str, Any] = {"stage": stage.name, "device": "auto", **given}
    problems: list[Problem] = []
    for name, value in [*(keys or {}).items(), *options.items()]:
        found = _path_of(stage, name)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            _set(raw, found.split("."), _plain(value))
    if problems:
        raise UserError(*problems)
    if "name" not in raw:
        from llm_lab.wizard.draft import first_name

        raw["name"] = first_name(stage.name, (raw.get("model") or {}).get("checkpoint"))
    return raw


def _path_of(stage: Stage, name: str) -> str | Problem:
    """Return the dotted key that a name means, or the problem with the name."""
    groups, short = _names_of(stage)
    if "." in name or name in groups:
        return name  # a wrong dotted key is reported with all other problems of the recipe
    paths = short.get(name, ())
    if len(paths) == 1:
        return paths[0]
    if paths:
        why = f"{len(paths)} keys of {stage.name} have this name"
        return Problem(name, why, allowed=one_of(paths), fix=f'Use the dotted key: {{"{paths[0]}": ...}}.')
    known = [*groups, *short]
    return Problem(
        name,
        f"{stage.name} has no such key",
        fix=did_you_mean(name, known) or "docs/recipe.md of LLM Lab lists all keys.",
    )


@functools.cache
def _names_of(stage: Stage) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the keys at the top level of a stage's recipe, and {last part of a key: the keys that end in it}."""
    from llm_lab.recipe.fields import keys_of, leaf_keys

    schema = stage.recipe
    short: dict[str, dict[str, None]] = {}
    for key, _ in leaf_keys(schema):
        if "." in key.path and INNER_LIST not in key.path:
            short.setdefault(key.name, {})[key.path] = None
    return tuple(key.path for key in keys_of(schema)), {name: tuple(paths) for name, paths in short.items()}


def _set(node: dict[str, Any], steps: list[str], value: Any) -> None:
    *parents, last = steps
    for step in parents:
        inner = node.get(step)
        node[step] = inner = dict(inner) if isinstance(inner, Mapping) else {}
        node = inner
    both = isinstance(value, Mapping) and isinstance(node.get(last), Mapping)
    if last in ("optimizer", "scheduler") and isinstance(value, str):
        value = {"name": value}
    node[last] = {**node[last], **value} if both else value


def _plain(value: Any) -> Any:
    """Return a value as it would be in a recipe file."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _checkpoint(model: Model) -> dict[str, str]:
    if not isinstance(model, str | PathLike):
        allowed = "a run, a folder, a GGUF file, or a name on the Hub"
        raise UserError(Problem("model", "this names no model", value=model, allowed=allowed))
    return {"checkpoint": fspath(model)}


def _model_to_pretrain(model: Any) -> dict[str, Any]:
    from llm_lab.recipe.parts import SIZE_CHOICES

    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, str) and model in SIZE_CHOICES:
        return {"size": model}
    found = _checkpoint(model)
    return {"config": found["checkpoint"]} if found["checkpoint"].endswith(".json") else found


def _sources(data: Data) -> list[dict[str, Any]]:
    return list(_entries(data, "path", "data"))


def _rewards(rewards: Any) -> list[dict[str, Any]]:
    from llm_lab.recipe.scoring import REWARDS

    def key_of(text: str) -> str:
        return "name" if text in REWARDS else "python" if ".py:" in text else "model"

    return [
        term if "path" not in term else {key_of(term["path"]): term["path"]}
        for term in _entries(rewards, "path", "rewards")
    ]


def _entries(value: Any, key: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield each entry of a list (or the single entry): a dict as it is, a text as {key: text}."""
    for entry in value if isinstance(value, list | tuple) else [value]:
        if isinstance(entry, Mapping):
            yield _plain(entry)
        elif isinstance(entry, str | PathLike):
            yield {key: fspath(entry)}
        else:
            why = f"{type(entry).__name__} is not supported here"
            fix = "Write rows into a .jsonl file first." if name == "data" else None
            raise UserError(Problem(name, why, allowed="a string, a dict, or a list of these", fix=fix))


# --- runs


def _tune(stage: Stage, model: Model, data: Data, keys: Keys, options: dict[str, Any], **more: Any) -> Run:
    return _run(stage, {"model": _checkpoint(model), "data": _sources(data), **more}, keys, options)


def _run(stage: Stage, given: Mapping[str, Any], keys: Keys, options: dict[str, Any]) -> Run:
    """Show the plan of a stage, run it with progress, and return its run."""
    from llm_lab.job import check
    from llm_lab.runner import Start, run_job
    from llm_lab.terminal.plan_panel import print_plan
    from llm_lab.terminal.progress import show_progress

    from .run_result import Run

    overwrite = bool(options.pop("overwrite", False))
    job = check(recipe_of(stage, given, keys, options))
    for resolved in job.stages:
        print_plan(resolved, job.folder_of(resolved, overwrite=overwrite))
    with show_progress() as listener:
        facts = run_job(job, Start(overwrite=overwrite), listener=listener)
    return Run(facts["path"])
