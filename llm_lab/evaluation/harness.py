"""Tasks of lm-evaluation-harness (Gao et al., https://zenodo.org/records/12608602), run on a loaded model."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from logging import getLogger as get_logger
from pathlib import Path
from typing import Any

from llm_lab.errors import MachineError, Problem, UserError, did_you_mean
from llm_lab.events import Listener, progress_of
from llm_lab.recipe.eval import EvalTasks
from llm_lab.recipe.trust import code_in, is_task_path, require_allowed

from .score import own_sampling_off

KEY = "tasks.names"


def load_tasks(wanted: EvalTasks) -> Any:
    """Load tasks by name, YAML file or folder of YAML files, which can run code.

    Raises UntrustedCode if the user has not allowed it, and UserError with every task that can't be loaded.
    """
    require_allowed(code_in({"tasks": {"names": wanted.names}}))
    with _quiet():
        manager = _manager(include_defaults=any(not is_task_path(name) for name in wanted.names))
        found: list[Any] = []
        problems: list[Problem | str] = []
        for name in wanted.names:
            try:
                found += _load(manager, name)
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(*problems)
        try:
            return manager.load(found)
        except ValueError as error:  # a task is listed on its own and in a group
            raise UserError(Problem(KEY, str(error))) from None


@functools.cache
def _manager(*, include_defaults: bool) -> Any:
    """Return the harness's task index; with its own tasks, it reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=include_defaults)


def _load(manager: Any, name: str) -> list[Any]:
    from lm_eval.tasks import TaskManager

    specs, path = [name], Path(name).expanduser()
    if is_task_path(name):
        if not path.exists():
            raise UserError(Problem(KEY, "no such file or folder", value=name))
        if path.is_dir():
            manager = TaskManager(include_path=str(path), include_defaults=False)
            specs = manager.all_subtasks
            if not specs:
                raise UserError(Problem(KEY, "no YAML file in this folder defines a task", value=name))
        else:
            specs = [str(path.resolve())]
    elif name not in manager.task_index:
        fix = did_you_mean(name, manager.all_tasks)
        fix = fix or "`lm-eval ls tasks` lists the tasks; use a path for a YAML file of your own."
        raise UserError(Problem(KEY, "lm-evaluation-harness has no such task", value=name, fix=fix))
    try:
        loaded = manager.load(specs)
    except ModuleNotFoundError as error:
        why = f"this task requires the package {error.name}"
        raise MachineError(Problem(KEY, why, value=name, fix=f"pip install {error.name}")) from None
    except Exception as error:  # this fetches the task's data: host, format or the task's code can raise anything
        first = next(iter(str(error).splitlines()), type(error).__name__)
        fix = "Its data comes from the Hub or from the source in its file: check the network and the file."
        raise UserError(Problem(KEY, f"it can't be loaded: {first[:200]}", value=name, fix=fix)) from None
    members = {task for group in loaded.get("groups", {}).values() for task in group.child_names}
    groups = [group for key, group in loaded.get("groups", {}).items() if key not in members]
    return groups or list(loaded["tasks"].values())


def measure_tasks(
    tasks: Any,
    wanted: EvalTasks,
    model: Any,
    tokenizer: Any,
    *,
    max_length: int | None,
    rows: int,
    dtype: str,
    listener: Listener,
) -> dict[str, dict[str, Any]]:
    """Return {task or group: {metric, metric_stderr (standard error), documents, num_fewshot, version}}.

    All other settings, including the seeds, are those of the tasks and the harness, so that results can be compared
    with published ones. max_length: None for the model's context. Nothing is cached or uploaded. Raises UserError for a
    task that runs generated code.
    """
    import inspect
    import random

    import numpy as np
    import torch
    from lm_eval import evaluator

    defaults = inspect.signature(evaluator.simple_evaluate).parameters
    seeds = {name: value.default for name, value in defaults.items() if name.endswith("random_seed")}
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        # As in the harness: a task that is defined as zero-shot stays zero-shot.
        if own is None or (wanted.num_fewshot is not None and own != 0):
            task.set_config(key="num_fewshot", value=wanted.num_fewshot or 0)
        task.set_fewshot_seed(seed=seeds["fewshot_random_seed"])
    # Some tasks use the global random state.
    random.seed(seeds["random_seed"])
    np.random.seed(seeds["numpy_random_seed"])
    torch.manual_seed(seeds["torch_random_seed"])
    with _quiet(), own_sampling_off(model):
        adapted = _harness_model(model, tokenizer, max_length, rows, dtype, listener)
        try:
            found = evaluator.evaluate(
                adapted,
                tasks,
                limit=wanted.limit,
                log_samples=False,
                apply_chat_template=wanted.apply_chat_template,
                fewshot_as_multiturn=wanted.apply_chat_template,
            )
        except ValueError as error:
            if "unsafe" not in str(error):
                raise
            why = "one of these tasks runs generated code, which is not supported"
            raise UserError(Problem(KEY, why, value=", ".join(wanted.names))) from None
    counts, shots, versions = (found.get(key) or {} for key in ("n-samples", "n-shot", "versions"))
    results = found["results"] | (found.get("groups") or {})
    return {
        name: dict(_metrics(row))
        | ({"documents": counts[name]["effective"]} if name in counts else {})
        | ({"num_fewshot": shots[name]} if name in shots else {})
        | ({"version": versions[name]} if name in versions else {})
        for name, row in results.items()
    }


def _metrics(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield (name, value); "acc,none" becomes acc, "exact_match,strict-match" becomes exact_match (strict-match)."""
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if comma and isinstance(value, int | float):
            yield metric if filter_name == "none" else f"{metric} ({filter_name})", float(value)


def _harness_model(
    model: Any, tokenizer: Any, max_length: int | None, rows: int, dtype: str, listener: Listener
) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    class HarnessModel(HFLM):
        """The harness's own adapter, which reports its progress to the listener."""

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **options: Any) -> Any:
            self._begin(len(requests))
            found = super()._loglikelihood_tokens(requests, *args, **(options | {"disable_tqdm": True}))
            self._report(len(requests), self._total)
            return found

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> Any:
            self._begin(len(requests))
            found = super().generate_until(requests, disable_tqdm=True)
            self._report(len(requests), self._total)
            return found

        def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
            self._done += inps.shape[0]
            self._report(min(self._done, self._total - 1), self._total)
            return super()._model_call(inps, *args, **options)

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            self._done += context.shape[0]
            self._report(min(self._done, self._total - 1), self._total)
            return super()._model_generate(context, *args, **options)

        def _begin(self, total: int) -> None:
            self._done, self._total = 0, total
            self._report = progress_of(listener, "tasks")

    half = torch.bfloat16 if dtype == "bfloat16" and model.dtype != torch.bfloat16 else None
    return HarnessModel(
        pretrained=model,
        # A copy, since the harness sets a padding token.
        tokenizer=copy.deepcopy(tokenizer),
        backend="causal",  # otherwise the harness accepts only model types of transformers
        max_length=max_length,
        batch_size=rows,
        mixed_precision_dtype=half,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the harness's log lines and progress bars."""
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    logger = get_logger("lm_eval")
    before = logger.level
    logger.setLevel("ERROR")
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
