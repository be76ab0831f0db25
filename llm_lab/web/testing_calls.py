"""Calls that the worker of the testing page answers: models side by side, on prompts and on texts."""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from llm_lab.evaluation.compare import SETTINGS, compare
from llm_lab.events import Event, Notice, Progress
from llm_lab.runner import load
from llm_lab.runs.comparison import (
    Answer,
    Comparison,
    best_of,
    differences,
    format_measure,
    label_of,
    letters,
    measures_of,
    reference_of,
    verdict,
)
from llm_lab.safe_text import redact

EVERY_SECONDS = 0.2


def compare_models(
    names: Sequence[str],
    prompts: Sequence[str],
    data: Sequence[str],
    prompt_set: str | None,
    adapter_off: bool,
    settings: Mapping[str, Any],
) -> Generator[dict[str, Any], None, dict[str, Any]]:
    """Yield {"label", "done", "total"} and {"notice"} while models are compared, then return the result to show.

    The arguments are those of evaluation.compare.compare.
    """
    events: queue.Queue[Event] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(
            compare,
            names,
            load=partial(load, device=None),
            prompts=prompts,
            prompt_set=prompt_set,
            data=data,
            adapter_off=adapter_off,
            settings=dataclasses.replace(SETTINGS, **settings),
            listener=events.put,
        )
        while not (work.done() and events.empty()):
            try:
                event = events.get(timeout=EVERY_SECONDS)
            except queue.Empty:
                continue
            if isinstance(event, Progress):
                yield {"label": event.label, "done": event.done, "total": event.total}
            elif isinstance(event, Notice):
                yield {"notice": event.text}
    return _shown(work.result())


def _shown(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as the page shows it: a table of measurements, and every answer with its differences."""
    measures = [
        {
            "name": label_of(key),
            "values": [format_measure(key, model.numbers.get(key)) for model in comparison.models],
            "best": sorted(best_of(comparison, key)),
        }
        for key in measures_of(comparison)
    ]
    models = [
        {"letter": letter, "name": model.name, "mode": model.mode}
        for letter, model in zip(letters(comparison), comparison.models, strict=True)
    ]
    answers = [
        [_answer(comparison, i, number) for i in range(len(models))] for number in range(len(comparison.prompts))
    ]
    return {
        "models": models,
        "measures": measures,
        "prompts": list(comparison.prompts),
        "answers": answers,
        "drawn": comparison.drawn,
        "remarks": list(comparison.remarks),
    }


def _answer(comparison: Comparison, model: int, number: int) -> dict[str, Any]:
    answer = comparison.models[model].answers[number]
    if answer.problem:
        return {"problem": answer.problem, "parts": [], "about": ""}
    against = reference_of(comparison, model)
    first: Answer | None = None if against is None else comparison.models[against].answers[number]
    about = answer.describe()
    if first is None or against is None or first.problem:
        return {"problem": None, "parts": [["same", redact(answer.text)]], "about": about}
    parts = [[part.kind, redact(part.text)] for part in differences(first.text, answer.text)]
    differs = verdict(first, answer, letters(comparison)[against])
    return {"problem": None, "parts": parts, "about": f"{about}; {differs}" if differs else about}


CALLS = {"compare_models": compare_models}
