"""A recipe as a job: found, read, resolved and checked once, then shown or run."""

from __future__ import annotations

import copy
import functools
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from llm_lab.errors import LabError, Problem, UserError, did_you_mean, one_of, suggest
from llm_lab.estimate.machine import Machine, find_machine
from llm_lab.estimate.parameters import token_counter
from llm_lab.recipe.eval import measures_itself
from llm_lab.recipe.export import ExportRecipe, unsupported_formats
from llm_lab.recipe.fields import flatten
from llm_lab.recipe.files import read_recipe_file, to_yaml
from llm_lab.recipe.post_training import fill_steps
from llm_lab.recipe.registry import PipelineRecipe, expand_model, named_in, stage_of
from llm_lab.recipe.resolve import Resolved, diagnose, estimate_again
from llm_lab.recipe.train_loop import LENGTH_RULES
from llm_lab.recipe.trust import Code, code_in
from llm_lab.recipe.validate import validate_as, with_groups_off, with_overrides
from llm_lab.recipe.what_fits import make_it_fit
from llm_lab.runs.folder import (
    ROOT,
    RunFolder,
    find_model,
    find_run,
    free_name,
    list_runs,
    require_no_links,
    settle,
    slug,
)
from llm_lab.runs.recipe_paths import require_own_data, with_paths_of

SHIPPED_RECIPES = Path(__file__).resolve().parent.parent / "configs"
RECIPE_FOLDERS = (Path("configs"), Path(), SHIPPED_RECIPES)  # where a recipe is looked for by its name
LINES_LOOKED_AT = 200  # of a YAML file, to see whether it is a recipe
# Names on the Hub without an owner. A run whose name begins with one of them needs its full name.
ONE_WORD_MODELS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")
_OVERRIDE = re.compile(r"(command line: |For example )(?=[a-z_]+(?:\.\w+)*=)")  # where an error names an override
REFERENCE = "stage:"  # in a pipeline, stage:sft is the result of the stage named sft


@dataclass(frozen=True)
class Job:
    """What a recipe describes: one stage, or several in order."""

    name: str
    stages: tuple[Resolved, ...]
    is_pipeline: bool
    remarks: tuple[str, ...] = ()  # about the overrides and the data
    dropped: tuple[str, ...] = ()  # the remarks about settings that overrides dropped
    own_run: RunFolder | None = None  # the run whose recipe.yaml this is
    is_found: bool = False  # read from a run's folder, which someone else may have written
    resumed: Path | None = None  # the folder of the run that this job continues, once it is known

    def code(self) -> list[Code]:
        """Return the code that the recipe runs."""
        return [code for resolved in self.stages for code in code_in(resolved.values)]

    @property
    def home(self) -> Path:
        """The folder in which the stages' folders are created."""
        return ROOT / self.name if self.is_pipeline else ROOT

    def folder_of(self, resolved: Resolved, *, overwrite: bool = False) -> Path:
        """Return the folder of a stage's run: the resumed one, or that of a new run, which has a free name."""
        outer = self.resumed or ROOT / (self.name if overwrite else free_name(self.name))
        return outer / resolved.values["name"] if self.is_pipeline else outer

    def values(self, name: str | None = None) -> dict[str, Any]:
        """Return the values for recipe.yaml. name: the folder's name, if it differs from the job's."""
        if not self.is_pipeline:
            return {**self.stages[0].values, "name": name or self.name}
        stages = [_rename(resolved.values, self._as_reference) for resolved in self.stages]
        for values in stages:
            if str(values.get("tokenizer", "")).startswith(REFERENCE):
                del values["tokenizer"]
        return {"name": name or self.name, "stages": stages}

    def _as_reference(self, text: str) -> str:
        return REFERENCE + Path(text).name if _is_inside(text, self.home) else text

    def to_yaml(self, name: str) -> str:
        """Return a pipeline's recipe.yaml. name: the name of the folder that was created for it."""
        return to_yaml(self.values(name), PipelineRecipe, lambda path, text: None)

    def keys(self, origin: str) -> set[str]:
        """Return the keys of recipe.yaml with values of one origin, such as derived."""
        return {
            f"stages.{index}.{path}" if self.is_pipeline else path
            for index, resolved in enumerate(self.stages)
            for path, found in resolved.origins.items()
            if found.kind == origin
        }


def find_recipe(name: str | Path) -> Path:
    """Return the recipe file that a user names: a path, a run folder, or the name of a shipped recipe."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    for folder in RECIPE_FOLDERS:
        for candidate in (folder / path.name, folder / f"{path.name}.yaml"):
            fits = path.parent == Path() or (path.parent == Path("configs") and folder != Path())
            if fits and candidate.is_file():
                return candidate
    run = find_run(str(name))
    if run is not None and (run / "recipe.yaml").is_file():
        return run
    if run is not None:
        facts = RunFolder(run).facts()
        again = (facts.get("study") or {}).get("command")
        fix = f"Its command: {again}" if again else f"What is known about it: llm-lab show {shlex.quote(run.name)}"
        raise UserError(Problem(str(name), f"{run} has no recipe.yaml, so it can't be run or resumed", fix=fix))
    if path.parent == Path() and not path.suffix:
        known = [file.stem for file in list_recipes()] + [run.path.name for run in list_runs()]
        raise UserError(Problem(str(name), "there is no such recipe", fix=suggest(str(name), known, "There are none.")))
    return path


def list_recipes() -> list[Path]:
    """Return the available recipe files: those in ./configs, those here, then those shipped with LLM Lab.

    Of several with the same name, only the first is listed.
    """
    found: dict[str, Path] = {}
    for folder in RECIPE_FOLDERS:
        for file in sorted(folder.glob("*.yaml")) if folder.is_dir() else []:
            if folder != Path() or _looks_like_a_recipe(file):
                found.setdefault(file.name, file)
    return list(found.values())


def _looks_like_a_recipe(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as lines:
            return any(line.startswith(("stage:", "stages:")) for line in islice(lines, LINES_LOOKED_AT))
    except (OSError, UnicodeDecodeError):
        return False


def check(
    recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, machine: Machine | None = None
) -> Job:
    """Return the job of a recipe. Raises UserError with every problem of the recipe and its data at once."""
    job, problems = read_job(recipe, overrides, machine=machine)
    remarks = [*job.dropped] if job else []
    for index, resolved in enumerate(job.stages if job else ()):
        found, more = look_at_data(resolved, job.home if job and job.is_pipeline else None)
        found = [within_stage(index, problem) for problem in found] if job and job.is_pipeline else found
        problems += [problem for problem in found if str(problem) not in map(str, problems)]
        remarks += more
    for index, problem in unsupported_formats([one.values for one in job.stages], job.home) if job else ():
        problems.append(within_stage(index, problem) if job and job.is_pipeline else problem)
    if problems or job is None:
        raise UserError(*problems)
    stages = tuple(make_it_fit(with_sizes(resolved)) for resolved in job.stages)
    for index, resolved in enumerate(stages):
        for problem in problems_of_length(resolved):
            problems.append(within_stage(index, problem) if job.is_pipeline else problem)
    if problems:
        raise UserError(*problems)
    return replace(job, stages=stages, remarks=tuple(remarks))


def read_job(
    recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] = (), *, machine: Machine | None = None
) -> tuple[Job | None, list[Problem | str]]:
    """Read and resolve a recipe as far as possible, without checking its data; returns the job and every problem."""
    machine = machine or find_machine()
    settle()
    if isinstance(recipe, Mapping):
        raw, stem, home = dict(recipe), "run", None
    else:
        path = find_recipe(recipe)
        require_no_links(path if path.is_dir() else path.parent)
        raw = read_recipe_file(path)
        home = path if path.is_dir() else path.parent
        if (home / "run.json").is_file() and (path.is_dir() or path.name == "recipe.yaml"):
            raw = with_paths_of(raw, home)
        stem = path.name if path.is_dir() else path.parent.name if path.name == "recipe.yaml" else path.stem
    raw, overridden, dropped = with_overrides(raw, overrides)
    name = slug(stem, "run")
    if isinstance(raw.get("stages"), list):
        raw["stages"] = [
            _with_full_names(with_groups_off(one)) if isinstance(one, dict) else one for one in raw["stages"]
        ]
    else:
        raw = _with_full_names(with_groups_off(raw))
    if "stages" in raw:
        job, problems = _read_pipeline(raw, name, overridden, machine)
    else:
        resolved, found = diagnose(raw, machine=machine, name=name, overrides=overridden)
        job, problems = Job(resolved.values["name"], (resolved,), False) if resolved else None, [*found]
        problems += _references_outside_a_pipeline(resolved.values) if resolved else ()
    job = replace(job, dropped=tuple(dropped)) if job else None
    if job is not None and home is not None:
        run = RunFolder(home)
        made = path.name == "recipe.yaml" and (run.model_path.is_dir() or run.steps_path.is_dir())
        is_found = path.is_dir() or run.run_json.exists() or made
        job = replace(job, own_run=run if run.run_json.is_file() else None, is_found=is_found)
    return job, problems


def _references_outside_a_pipeline(values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each stage of a pipeline that a recipe of a single stage names."""
    for key, text in named_in(values, "model", "tokenizer"):
        if text.startswith(REFERENCE):
            why = f"{REFERENCE}NAME is a stage of the same pipeline, and this recipe has no stages"
            yield Problem(key, why, value=text, fix="Name a run, a folder, or a model on the Hub.")


def _with_full_names(values: dict[str, Any]) -> dict[str, Any]:
    """Return a stage's values with paths in place of models that are named by a run, or the start of its name."""
    return _rename(expand_model(values), _full_name, "model")


def _full_name(text: str) -> str:
    if text.startswith(REFERENCE) or Path(text).expanduser().exists():
        return text
    if (ROOT / text).exists():
        return str(ROOT / text)
    if not (ROOT / text).parent.is_dir() or (run := find_run(text)) is None:
        return text
    from llm_lab.estimate.cached_models import cached_folder

    return text if text in ONE_WORD_MODELS or cached_folder(text) else str(run)


def look_at_data(resolved: Resolved, home: Path | None = None) -> tuple[list[Problem | str], list[str]]:
    """Check whether data, prompts to score on and reward functions exist; returns problems and remarks.

    home: a pipeline's folder. Models that an earlier stage will create are not checked: the folder may contain a killed
    or an older run.
    """
    from llm_lab.data.examples import look_at_examples
    from llm_lab.data.paths import default_split
    from llm_lab.data.sources import look_at_source
    from llm_lab.hf.adapter import read_adapter
    from llm_lab.hf.hub import look_at_model
    from llm_lab.rewards.build import check_files

    stage, recipe, score = resolved.stage, resolved.recipe, getattr(resolved.recipe, "score", None)
    looks: list[Callable[[], Any]] = []
    checkpoint = getattr(getattr(recipe, "model", None), "checkpoint", None)
    if home is not None and _is_inside(checkpoint, home):
        checkpoint = None
    if checkpoint and (Path(checkpoint).expanduser().exists() or (ROOT / checkpoint).exists()):
        if stage.makes is None and measures_itself(resolved.values):
            looks.append(lambda: require_own_data(str(find_model(checkpoint))))
        if stage.takes_adapter:
            looks.append(lambda: read_adapter(find_model(checkpoint), key="model.checkpoint"))
    looks += [partial(look_at_model, name, key=key, what=what) for key, name, what in hub_models(resolved)]
    for index, source in _written_sources(resolved):
        options = source.model_dump(exclude={"path", "weight"}) | {"key": f"data.{index}"}
        if stage.examples == "text":
            looks.append(partial(look_at_source, source.path, **options))
        else:
            options["columns"] = source.columns.model_dump(exclude_none=True) if source.columns else None
            looks.append(partial(look_at_examples, source.path, kind=stage.examples or "", **options))
    if (general := getattr(recipe, "forgetting", None)) is not None:
        given = general.model_dump(exclude={"max_tokens", "threshold"})
        looks.append(partial(look_at_source, **given, key="forgetting"))
    if score is not None and score.path:
        columns = score.columns.model_dump(exclude_none=True) if score.columns else None
        look = partial(look_at_examples, score.path, kind="prompt", key="score", subset=score.subset, columns=columns)
        looks.append(lambda: look(split=default_split(score.path, score.split)))
    problems: list[Problem | str] = []
    remarks = []
    for one in looks:
        try:
            remark = one()
        except UserError as error:
            problems += error.problems
        else:
            remarks += [remark] if isinstance(remark, str) else []
    own, scored = getattr(recipe, "rewards", None), getattr(score, "rewards", None)
    for key, terms in (("rewards", own), ("score.rewards", None if scored == own else scored)):
        problems += check_files([term.model_dump() for term in terms or ()], key=key)
    return problems, remarks


def _written_sources(resolved: Resolved) -> list[tuple[int, Any]]:
    """Return (index, source) for the datasets of a recipe, as the user wrote them.

    Where an entry is not valid, it was left out or replaced so that the other keys could be checked. Then the datasets
    are returned only if it is certain which entries they are.
    """
    given, sources = resolved.given.get("data"), getattr(resolved.recipe, "data", None) or ()
    entries = given if isinstance(given, list | tuple) else ()
    written = [index for index, one in enumerate(entries) if isinstance(one, Mapping) and one.get("path")]
    return list(zip(written, sources, strict=True)) if len(written) == len(sources) else []


def problems_of_push(resolved: Resolved) -> Sequence[Problem | str]:
    """Return the problem that a push would start without a Hub token. A plan without a start requires none."""
    from llm_lab.export.push import require_token

    if isinstance(resolved.recipe, ExportRecipe) and resolved.recipe.export.push:
        try:
            require_token()
        except UserError as error:
            return error.problems
    return []


def hub_models(resolved: Resolved) -> list[tuple[str, str, str]]:
    """Return (dotted key, name, "model" or "tokenizer") of what a stage loads from the Hub, each name once."""
    found: dict[str, tuple[str, str, str]] = {}
    for kind in ("model", "tokenizer"):
        for key, name in named_in(resolved.values, kind):
            if kind == "model" or (name != "bytes" and name.lower() != "bpe"):  # a rule says that BPE needs a size
                found.setdefault(name, (key, name, kind))
    return [
        (key, name, kind)
        for key, name, kind in found.values()
        if name.count("/") <= 1
        and not name.startswith((REFERENCE, ".", "~", "/", f"{ROOT}/"))
        and not Path(name).exists()
        and not (kind == "model" and (ROOT / name).exists())
    ]


def problems_of_length(resolved: Resolved) -> list[Problem]:
    """Return the problems with the number of steps of a run in epochs, which is known once its examples are counted."""
    if not resolved.examples:
        return []
    examples, processes = resolved.examples.training, resolved.machine.processes
    values, _ = fill_steps(resolved.stage, resolved.values, examples=examples, processes=processes)
    return [problem for rule in LENGTH_RULES for problem in rule(values)]


def with_sizes(resolved: Resolved) -> Resolved:
    """Return a stage with the number and lengths of its examples, and an estimate based on them."""
    from llm_lab.data.split import measure_examples

    stage, recipe = resolved.stage, cast(Any, resolved.recipe)
    if not stage.trains or stage.examples == "text":
        return resolved
    sets = []
    for index, source in enumerate(recipe.data):
        columns = source.columns.model_dump(exclude_none=True) if source.columns else None
        sets.append(source.model_dump(exclude={"weight"}) | {"columns": columns, "key": f"data.{index}"})
    split = recipe.validation
    try:
        found = measure_examples(
            sets,
            kind=stage.examples or "",
            fraction=split.fraction,
            take=split.from_,
            **_tokens_of(recipe.model.checkpoint, recipe.chat_template),
        )
    except UserError:  # the run reports the error
        return resolved
    return estimate_again(replace(resolved, examples=found)) if found else resolved


def _tokens_of(checkpoint: str, template: str | None) -> dict[str, Any]:
    """Return functions that count a model's tokens and render messages, from its files on this machine."""
    from llm_lab.estimate.cached_models import cached_folder
    from llm_lab.hf.rendering import renderer_of

    given = Path(checkpoint).expanduser()
    place = given if given.exists() else cached_folder(checkpoint) or given
    folder = place / "model" if (place / "model").is_dir() else place
    own = renderer_of(folder) if template in (None, "own") else None
    return {"count_tokens": token_counter(str(folder)), "render": own}


# --- pipelines


def _read_pipeline(
    raw: dict[str, Any], name: str, overridden: set[str], machine: Machine
) -> tuple[Job | None, list[Problem | str]]:
    """Resolve every stage of a pipeline; returns the job (None unless all stages were resolved) and every problem."""
    pipeline, found, _ = validate_as(PipelineRecipe, raw)
    if pipeline is None:
        return None, [*found]
    problems: list[Problem | str] = [*found]
    name = pipeline.name or name
    home = ROOT / name
    resolved: dict[str, Resolved] = {}
    labels: list[str] = []
    for index, given in enumerate(pipeline.stages):
        prefix = f"stages.{index}."
        values = _with_defaults(given, pipeline, raw, labels, resolved)
        values, unknown = _with_folders(values, labels, home)
        labels.append(values["name"])
        before = resolved.get(_stage_before(values, home) or "")
        unknown += _unfit_models(values, before, resolved)
        own = {key.removeprefix(prefix) for key in overridden if key.startswith(prefix)}
        try:
            result, more = diagnose(values, machine=machine, name=values["name"], overrides=own, before=before)
        except UserError as error:
            result, more = None, [problem for problem in error.problems if isinstance(problem, Problem)]
        # The result of an earlier stage does not exist yet.
        more = [problem for problem in more if not _is_inside(problem.value, home)]
        problems += [within_stage(index, problem) for problem in [*unknown, *more]]
        if result:
            resolved[values["name"]] = result
    complete = len(resolved) == len(labels)
    return Job(name, tuple(resolved.values()), True) if complete else None, problems


def _with_defaults(
    given: Mapping[str, Any],
    pipeline: PipelineRecipe,
    raw: Mapping[str, Any],
    labels: list[str],
    resolved: Mapping[str, Resolved],
) -> dict[str, Any]:
    """Return a stage's values with the defaults from the pipeline and the stages before it."""
    values = {"seed": pipeline.seed, "device": pipeline.device, **expand_model(given)}
    stage = stage_of(values)
    if stage and stage.has("score") and raw.get("score") is not None:
        values.setdefault("score", raw["score"])
    values["name"] = str(values.get("name") or values.get("stage") or "stage")
    while values["name"] in labels:
        values["name"] += "-2"
    if "model" not in values and labels:
        values["model"] = {"checkpoint": _default_model(labels, resolved)}
    return values


def _default_model(labels: list[str], resolved: Mapping[str, Resolved]) -> str:
    """Return the result of the last stage whose model can be trained further and can chat."""
    models = [label for label in labels if not _makes_reward_model(label, resolved) and not _is_aside(label, resolved)]
    if not models and _is_aside(labels[0], resolved):  # only evaluations and exports so far: use their model
        return resolved[labels[0]].values["model"]["checkpoint"]
    return REFERENCE + (models or labels)[-1]


def _is_aside(label: str, resolved: Mapping[str, Resolved]) -> bool:
    """Return whether later stages don't continue from a stage, because it measures or exports a model."""
    return label in resolved and not resolved[label].stage.continues


def _makes_reward_model(label: str, resolved: Mapping[str, Resolved]) -> bool:
    """Return whether a stage creates a reward model, or merges the adapter of one."""
    if label not in resolved:
        return False
    stage, values = resolved[label].stage, resolved[label].values
    if stage.trains:
        return stage.makes == "reward model"
    return stage.continues and _makes_reward_model(Path(values["model"]["checkpoint"]).name, resolved)


def _unfit_models(
    values: Mapping[str, Any], before: Resolved | None, resolved: Mapping[str, Resolved]
) -> Iterator[Problem]:
    """Yield a problem if the stage before creates no model that this one can start from."""
    if before is None:
        return
    stage, label = stage_of(values), before.values["name"]
    if not (stage and stage.accepts_reward_model) and _makes_reward_model(label, resolved):
        why = "that stage trains a reward model, which can't generate text"
        yield Problem("model.checkpoint", why, REFERENCE + label, fix="Name another stage.")
    if before.stage.makes is None:
        why = "that stage evaluates a model and does not create one"
        yield Problem("model.checkpoint", why, REFERENCE + label, fix="Name the model that it evaluated.")


def _stage_before(values: Mapping[str, Any], home: Path) -> str | None:
    """Return the name of the stage whose result is this stage's model, or None."""
    model = values.get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, Mapping) else None
    return Path(checkpoint).name if checkpoint and _is_inside(checkpoint, home) else None


def _with_folders(values: Mapping[str, Any], labels: list[str], home: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Replace references to stages by their folders: stage:sft becomes checkpoints/demo/sft."""
    problems = []
    for key, text in named_in(values, "model", "tokenizer"):
        wanted = text.removeprefix(REFERENCE)
        if text.startswith(REFERENCE) and wanted not in labels:
            why = "no earlier stage has this name"
            fix = did_you_mean(wanted, labels) or "A stage can start from an earlier stage only."
            problems.append(Problem(key, why, text, one_of(labels) or "none", fix))

    def place(text: str) -> str:
        return str(home / text.removeprefix(REFERENCE)) if text.startswith(REFERENCE) else text

    return _rename(values, place), problems


def _rename(values: Mapping[str, Any], change: Callable[[str], str], *kinds: str) -> dict[str, Any]:
    """Return a stage's values with every name of a model or tokenizer, or of the given kinds, changed."""
    named = dict(named_in(values, *(kinds or ("model", "tokenizer"))))

    def renamed(node: Any, path: str) -> Any:
        if isinstance(node, Mapping):
            return {key: renamed(value, f"{path}.{key}" if path else str(key)) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [renamed(value, f"{path}.{index}") for index, value in enumerate(node)]
        return change(node) if path in named else node

    return renamed(values, "")


def move(resolved: Resolved, planned: Path, actual: Path) -> Resolved:
    """Point a stage to the pipeline folder that was created: a number may have been added to its name."""
    if planned == actual:
        return resolved

    def moved(text: str) -> str:
        return str(actual / Path(text).name) if _is_inside(text, planned) else text

    values = _rename(resolved.values, moved)
    return replace(resolved, values=values, recipe=type(resolved.recipe).model_validate(values))


def _is_inside(text: Any, home: Path) -> bool:
    return isinstance(text, str) and Path(text).parent == home


def within_stage(index: int, problem: Problem | str) -> Problem | str:
    """Return a stage's problem with the keys that the pipeline's file uses, also in the override that fixes it."""
    if not isinstance(problem, Problem):
        return problem
    fix = _OVERRIDE.sub(rf"\1stages.{index}.", problem.fix) if problem.fix else problem.fix
    return replace(problem, key=f"stages.{index}.{problem.key}", fix=fix)


def error_within_stage(index: int, resolved: Resolved, error: LabError) -> LabError:
    """Return the error of a running stage with the keys that the pipeline's file uses."""
    known = {info.alias or name for name, info in type(resolved.recipe).model_fields.items()}
    problems = [
        within_stage(index, problem) if isinstance(problem, Problem) and problem.key.split(".")[0] in known else problem
        for problem in error.problems
    ]
    return type(error)(*problems)


def different_keys(job: Job, recipe: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (key, the recipe's value, the job's value) for each difference between a job and the recipe of a run.

    Derived values that the recipe leaves open do not count: an earlier stage's result may define them now. Neither do
    defaults of keys that are newer than the recipe, because the run did the same.
    """
    before, after = dict(flatten(recipe)), dict(flatten(job.values()))
    derived, defaults = job.keys("derived"), job.keys("default")
    return [
        (key, _plain(before.get(key)), _plain(after.get(key)))
        for key in sorted(before.keys() | after.keys())
        if key != "name"
        and _plain(before.get(key)) != _plain(after.get(key))
        and not (key in derived and before.get(key) is None)
        and not (key in defaults and key not in before)
    ]


def as_started(job: Job, recipe_file: Path) -> Job:
    """Return a resumed pipeline without the derived values that its recipe.yaml leaves open.

    An earlier stage's result may define them now, but the run would then differ from one that was not interrupted.
    """
    stages = []
    for resolved, started in zip(job.stages, read_recipe_file(recipe_file)["stages"], strict=True):
        before = dict(flatten(started))
        values, origins = copy.deepcopy(dict(resolved.values)), dict(resolved.origins)
        for path, origin in resolved.origins.items():
            if origin.kind == "derived" and path in before and before[path] is None:
                *groups, name = path.split(".")
                functools.reduce(_child, groups, values)[name] = None
                del origins[path]
        recipe = type(resolved.recipe).model_validate(values)
        stages.append(replace(resolved, values=values, recipe=recipe, origins=origins))
    return replace(job, stages=tuple(stages))


def _child(node: Any, name: str) -> Any:
    return node[int(name)] if isinstance(node, list | tuple) else node[name]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
