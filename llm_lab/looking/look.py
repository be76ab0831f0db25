"""Look inside a model: measure it, compare it with another or with its own checkpoints, and write the report."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llm_lab.errors import Problem, UserError
from llm_lab.evaluation.candidates import Candidate, find_candidate, find_steps, find_trusted, require_loadable
from llm_lab.events import Listener, Notice, Progress, ignore
from llm_lab.hf.load import quiet_libraries
from llm_lab.runs.folder import ROOT, free_names, run_of, slug

from .findings import Difference, Findings, Moment
from .heads import Repeats, score_heads, text_loss
from .inside import DEFAULT_TEXT, Inside, encode, look_inside
from .look_tables import notebook_html, tables_of
from .report_page import write_look
from .similarity import FEWEST_TOKENS, cka

Load = Callable[..., tuple[Any, Any]]  # (folder or Hub name, dtype=, trust_remote_code=False) -> (model, tokenizer)


@dataclass
class Looked(Findings):
    """The findings of a look, its numbers as tables, and the path of its report."""

    folder: Path | None = None

    @property
    def page(self) -> Path | None:
        """The report, a self-contained HTML page."""
        return None if self.folder is None else self.folder / "look.html"

    @property
    def tables(self) -> dict[str, Any]:
        """The numbers as pandas DataFrames, by name."""
        import pandas as pd

        return {name: pd.DataFrame(rows) for name, rows in tables_of(self).items()}

    @property
    def table(self) -> Any:
        """The scores of every head, as a pandas DataFrame; for a model without heads, the layers."""
        tables = self.tables
        return tables.get("heads", tables["layers"])

    def _repr_html_(self) -> str:
        return notebook_html(self, self.page)


def look(
    name: str,
    *,
    load: Load,
    text: str | None = None,
    against: str | None = None,
    steps: bool = False,
    out: str | Path | None = None,
    trust_remote_code: bool = False,
    listener: Listener = ignore,
) -> Looked:
    """Look inside a model and write the report.

    name: a run, a Hugging Face folder, or a name on the Hub. text: what the model reads. against: another model with
    the same tokenizer and shape, such as a tuned version of it. steps: also score the heads of all checkpoints of the
    run. out: the folder to write; by default <run>/look, or checkpoints/<name>-look. Raises UserError if the model
    can't be looked at, if possible before a model is loaded.
    """
    quiet_libraries()
    text = DEFAULT_TEXT if text is None else text
    if not text.strip():
        raise UserError(Problem("--prompt", "it is empty", fix="Write a sentence or two."))
    moments, remarks = find_steps(name) if steps else ([], [])
    candidates = [find_candidate(one) for one in (name, against) if one is not None]
    if against is not None and candidates[0].folder == candidates[1].folder:
        raise UserError(Problem("--against", "this is the same model", value=against, fix="Name another model."))
    trusted = find_trusted(candidates, trust_remote_code=trust_remote_code, names=())
    require_loadable([*candidates, *moments], trusted)
    folder = new_folder(candidates[0], out)

    opened = 0

    def open_model(candidate: Candidate) -> tuple[Any, Any]:
        nonlocal opened
        listener(Progress(candidate.name, opened, len(candidates) + len(moments)))
        opened += 1
        opener = partial(load, trust_remote_code=True) if candidate.folder in trusted else load
        return open_precisely(candidate, opener, listener)

    model, tokenizer = open_model(candidates[0])
    ids, more = encode(model, tokenizer, text)
    remarks += more
    inside = look_inside(model, tokenizer, ids, name=name.rstrip("/"), folder=candidates[0].folder, listener=listener)
    model = None
    release()
    found = Looked(inside, text, remarks)
    if against is not None:
        found.difference = compare_with(inside, text, open_model(candidates[1]), candidates[1], listener)
        release()
    if moments:
        found.moments = tuple(_follow(moments, ids, inside.repeats, open_model))
    write_look(found, folder)
    found.folder = folder
    listener(Progress("looked", opened, opened))
    return found


def new_folder(candidate: Candidate, out: str | Path | None) -> Path:
    """Return the folder for the report of a model, which does not exist yet. UserError if `out` is taken."""
    if out is not None:
        path = Path(out).expanduser()
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise UserError(Problem("--out", "it already exists and is not empty", value=out, fix="Name a new folder."))
        return path
    run = run_of(candidate.folder)
    path = ROOT / f"{slug(Path(candidate.name).name, 'model')}-look" if run is None else run.path / "look"
    return next(free_names(path))


def release() -> None:
    """Free the memory of a model that is no longer referenced."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def open_precisely(candidate: Candidate, load: Load, listener: Listener = ignore) -> tuple[Any, Any]:
    """Return a model in float32 and its tokenizer; in bfloat16 if it does not fit on the GPU."""
    try:
        return load(candidate.folder, dtype="float32")
    except torch.OutOfMemoryError:
        listener(Notice(f"{candidate.name} doesn't fit into the GPU in float32: bfloat16 is used, which rounds more."))
        return load(candidate.folder, dtype="bfloat16")


def compare_with(
    inside: Inside, text: str, opened: tuple[Any, Any], candidate: Candidate, listener: Listener
) -> Difference:
    """Measure another model on the same tokens. UserError if its tokenizer or its shape is different."""
    model, tokenizer = opened
    ids, _ = encode(model, tokenizer, text)
    if ids[: len(inside.ids)] != inside.ids:
        why = (
            "its tokenizer splits the text into different tokens, so weights and layers can't be compared token by "
            "token"
        )
        raise UserError(
            Problem("--against", why, value=candidate.name, fix="`llm-lab compare` compares their outputs.")
        )
    other = look_inside(
        model,
        tokenizer,
        inside.ids,
        name=candidate.name,
        folder=candidate.folder,
        ablation=False,
        repeats=inside.repeats,
        listener=listener,
    )
    shapes = [f"{one.layers} layer{'s' * (one.layers != 1)} of {one.heads} heads" for one in (inside, other)]
    if shapes[0] != shapes[1]:
        why = f"it has {shapes[1]}, but {inside.name} has {shapes[0]}"
        fix = "Compare a model with one that was tuned from it."
        raise UserError(Problem("--against", why, value=candidate.name, fix=fix))
    return difference_of(inside, other)


def difference_of(first: Inside, other: Inside) -> Difference:
    """Return the differences between two models of the same shape on the same tokens."""
    scores = None if first.scores is None or other.scores is None else (first.scores, other.scores)
    weights: Any = list(zip(first.recording.attention, other.recording.attention, strict=True))
    rows = []
    for one, two in weights:
        known = one is not None and two is not None
        rows.append((two - one).abs().sum(-1).mean(-1) / 2 if known else torch.full((first.heads,), float("nan")))
    logs = [found.recording.logits.log_softmax(-1) for found in (first, other)]
    width = min(log.shape[-1] for log in logs)  # a tuned model may have additional rows, for the tokens of a template
    one, two = (log[:, :width].log_softmax(-1) for log in logs)
    related = None
    if len(first.ids) > FEWEST_TOKENS:
        related = cka(first.recording.residual[:, 1:], other.recording.residual[:, 1:])
    return Difference(
        other=other,
        induction=None if scores is None else scores[1].induction - scores[0].induction,
        previous=None if scores is None else scores[1].previous - scores[0].previous,
        attention=torch.stack(rows) if first.heads else None,
        norms=other.norms / first.norms - 1,
        cka=related,
        divergence=(one.exp() * (one - two)).sum(-1).clamp_min(0) / torch.log(torch.tensor(2.0)),
    )


def _follow(
    moments: Sequence[Candidate],
    ids: list[int],
    repeats: Repeats | None,
    open_model: Callable[[Candidate], tuple[Any, Any]],
) -> list[Moment]:
    """Score the heads of every checkpoint on the same random tokens."""
    found = []
    one_stage = all(candidate.name.startswith("step ") for candidate in moments)
    for candidate in moments:
        model, _ = open_model(candidate)
        if repeats is None or max(int(repeats.ids.max()), *ids) >= model.get_input_embeddings().weight.shape[0]:
            continue  # an earlier stage of a pipeline, before tokens of a template were added
        scores = score_heads(model, repeats)
        has_heads = scores.induction.shape[1] > 0
        found.append(
            Moment(
                name=candidate.name,
                step=int(candidate.name.removeprefix("step ").replace(",", "")) if one_stage else None,
                induction=scores.induction if has_heads else None,
                previous=scores.previous if has_heads else None,
                first_loss=scores.first_loss,
                second_loss=scores.second_loss,
                text_loss=text_loss(model, ids),
            )
        )
        model = None
        release()
    return found
