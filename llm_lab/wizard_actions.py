"""What the wizard has done for it: it asks, and hands the answers to these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.commands import print_doctor, print_show, start_chat, start_compare, start_replay, start_run


def wizard_actions() -> Any:
    """Return what stands behind the wizard's questions."""
    from llm_lab.job import list_recipes
    from llm_lab.terminal.listing import recipe_summary
    from llm_lab.wizard.actions import Actions

    return Actions(
        start=start_run,
        chat=start_chat,
        doctor=print_doctor,
        show=print_show,
        describe_data=_describe_data,
        write_config=_write_config,
        recipes=list_recipes,
        summary=recipe_summary,
        problems=_problems,
        describe_examples=_describe_examples,
        columns=_columns,
        check_function=_check_function,
        compare=_compare,
        replay=start_replay,
        xray=_read_tokens,
    )


def _problems(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Return all that is wrong with a recipe."""
    from llm_lab.job import read_job

    return [str(problem) for problem in read_job(recipe, overrides)[1]]


def _describe_data(source: Mapping[str, Any]) -> str:
    """Look at a data source of the wizard and say what was found."""
    from llm_lab.data.sources import look_at_source, open_source
    from llm_lab.data.streams import open_stream

    keys = {key: source[key] for key in ("subset", "split", "text_column") if source.get(key)}
    streaming = bool(source.get("streaming"))
    remark = look_at_source(source["path"], streaming=streaming, **keys)
    return remark or (open_stream if streaming else open_source)(source["path"], **keys).describe()


def _describe_examples(source: Mapping[str, Any], kind: str) -> Any:
    """Read a set of examples of the wizard and say what was recognised; of one on the Hub, look at its page."""
    from llm_lab.data.examples import look_at_examples, open_examples
    from llm_lab.wizard.actions import FoundExamples

    path, keys = source["path"], {key: source[key] for key in ("subset", "split", "columns") if source.get(key)}
    remark = look_at_examples(path, kind=kind, **keys)
    if remark:
        return FoundExamples(remark)
    found = open_examples(path, kind=kind, **keys)
    return FoundExamples(found.description, found.examples[0].describe(), len(found.examples))


def _columns(source: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Return the columns of a set of examples."""
    from llm_lab.data.examples import columns_of_set

    keys = {key: source[key] for key in ("subset", "split") if source.get(key)}
    return columns_of_set(source["path"], kind=kind, **keys)


def _check_function(spec: str) -> Any:
    """Look at a reward function of the user's, as file.py:function, without running it."""
    from llm_lab.rewards.python_file import find_function

    return find_function(spec)


def _read_tokens(recipe: Mapping[str, Any]) -> Any:
    """Return what a draft of the wizard reads, as tokens."""
    from llm_lab.evaluation.xray import xray_stages
    from llm_lab.hf.load import quiet_libraries
    from llm_lab.recipe.resolve import resolve

    quiet_libraries()
    return xray_stages([resolve(recipe).recipe], examples=1)


def _write_config(name: str, values: Mapping[str, Any]) -> Path:
    """Write a design of the wizard as configs/models/<name>/config.json."""
    from llm_lab.hf.load import write_design

    return write_design(Path("configs/models") / name, values)


def _compare(wanted: Any) -> int:
    """Compare as the wizard's Comparison says."""
    return start_compare(wanted.checkpoints, prompts=wanted.prompts, steps=wanted.steps, adapter_off=wanted.adapter_off)
