"""The evaluations of a checkpoint: one line for each in evaluations.jsonl, and comparisons between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.estimate.gguf_header import is_gguf
from llm_lab.limits import parse_json

from .folder import ROOT, run_of
from .record import is_number

FILE = "evaluations.jsonl"


def evaluations_path(checkpoint: str | Path, *, root: Path = ROOT) -> Path:
    """Return the file with the evaluations of a model.

    checkpoint: the folder of the weights, or a name on the Hub. The file is in the run folder for a run's model, in
    the model folder itself for any other, and under checkpoints/hub/ for a name.
    """
    folder = Path(checkpoint)
    if is_gguf(folder):
        folder = folder.parent
    if not folder.is_dir():
        return root / "hub" / str(checkpoint).replace("/", "--") / FILE
    run = run_of(folder)
    return (run.path if run else folder) / FILE


def evaluations_of(checkpoint: str | Path, *, root: Path = ROOT) -> list[dict[str, Any]]:
    """Return the evaluations of a model, oldest first; for a run, those of all its checkpoints."""
    path = evaluations_path(checkpoint, root=root)
    rows = []
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                row = parse_json(line)
            except ValueError:  # a line cut off by a crash
                continue
            rows += [row] if isinstance(row, dict) else []
    return rows


def named_results(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the results of an evaluation by the keys that the glossary has for them.

    A loss is a validation loss (eval_loss) only on what the model's run held out; on other texts it is text_loss.
    record: a line of evaluations.jsonl, or the facts of an evaluation's run.
    """
    results, measured = record.get("results"), record.get("measured")
    found = {key: value for key, value in results.items() if is_number(value)} if isinstance(results, Mapping) else {}
    texts = measured.get("texts") if isinstance(measured, Mapping) else None
    if any(isinstance(text, Mapping) and text.get("own") for text in texts or ()):
        return found
    return {
        f"text_loss{key.removeprefix('eval_loss')}" if key.partition("/")[0] == "eval_loss" else key: value
        for key, value in found.items()
    }


# Settings that are stored among the numbers of an evaluation.
SETTINGS = ("documents", "tokens", "bytes", "max_length", "prompts", "max_completion_length", "num_fewshot", "version")

# What must be equal for two measurements to be comparable. Speed is not compared, because it depends on the machine.
SAME = {
    "texts": ("fingerprint", "tokens", "max_length", "own"),
    "scores": ("path", "fingerprint", "prompts", "max_completion_length"),
    "tasks": ("documents", "num_fewshot", "version"),
}


def flat_results(measured: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield an evaluation's numbers with the keys that they have in run.json's results.

    eval_loss, perplexity and bits_per_byte of all texts together, then of each text if there are several
    (eval_loss/PATH); the scores; tasks as tasks/NAME/METRIC; speed.
    """
    texts = measured.get("texts") or []
    if texts:
        yield from _text_results(measured.get("total") or texts[0])
    for row in texts if len(texts) > 1 else ():
        yield from ((f"{name}/{row['path']}", value) for name, value in _text_results(row))
    yield from numbers_of(measured.get("scores") or {})
    for task, row in (measured.get("tasks") or {}).items():
        yield from ((f"tasks/{task}/{name}", value) for name, value in numbers_of(row))
    yield from ((name, value) for name, value in numbers_of(measured.get("speed") or {}) if "second" in name)


def _text_results(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield "eval_loss", row["loss"]
    yield from ((name, row[name]) for name in ("perplexity", "bits_per_byte") if name in row)


def numbers_of(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the results in a row, without its settings."""
    for name, value in row.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in SETTINGS:
            yield name, value


def data_of(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the paths and fingerprints of the texts and prompts of an evaluation."""
    rows = [*(measured.get("texts") or ()), *([measured["scores"]] if "scores" in measured else [])]
    return [{key: row[key] for key in ("path", "fingerprint")} for row in rows if row.get("fingerprint")]


def with_before(measured: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return an evaluation with the latest comparable values of each row as "before": {"time": when, name: number}.

    lines: the evaluations of the checkpoint, oldest first. Comparable: the same amount of the same data, with the same
    settings.
    """
    earlier = {
        key: {"time": line.get("time"), **dict(numbers_of(row))}
        for line in lines
        for key, row in _rows(line.get("measured") or line)
    }
    before_row = {id(row): earlier.get(key) for key, row in _rows(measured)}

    def joined(row: Mapping[str, Any]) -> dict[str, Any]:
        before = before_row.get(id(row))
        return {**row, "before": before} if before else dict(row)

    found = dict(measured)
    for kind in found.keys() & SAME.keys():
        if kind == "texts":
            found[kind] = [joined(row) for row in found[kind]]
        elif kind == "tasks":
            found[kind] = {name: joined(row) for name, row in found[kind].items()}
        else:
            found[kind] = joined(found[kind])
    return found


def _rows(measured: Mapping[str, Any]) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any]]]:
    """Yield (what identifies comparable measurements, the row)."""
    rows = [("texts", None, row) for row in measured.get("texts") or ()]
    rows += [("tasks", name, row) for name, row in (measured.get("tasks") or {}).items()]
    rows += [("scores", None, measured["scores"])] if measured.get("scores") else []
    for kind, name, row in rows:
        yield (kind, name, *(row.get(key) for key in SAME[kind])), row
