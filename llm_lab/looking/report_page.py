"""The report of a look: a self-contained page with pictures and tables, and the numbers as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from llm_lab.estimate.formatting import percent
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.page import Page
from llm_lab.runs.plots import Line, draw_lines
from llm_lab.runs.svg import safe

from .explorer import add_data, add_style, explorer_frame, gradient
from .findings import Difference, Findings
from .inside import Inside
from .look_tables import document_of, summary_of
from .sections import (
    TOP,
    add_ablation,
    add_attribution,
    add_heads,
    add_lens,
    add_residual,
    add_similarity,
    decimal,
    draw_by_head,
    draw_cka,
    highest,
)

SMALL_CHANGE = 0.1  # the least range of the color scale for differences of scores


def write_look(looked: Findings, folder: Path) -> None:
    """Write look.html and look.json into a folder, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document_of(looked), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    write_atomically(folder / "look.json", text + "\n")
    write_atomically(folder / "look.html", page_of(looked))


def page_of(looked: Findings) -> str:
    """Return the report as one HTML document that makes no requests."""
    inside = looked.inside
    page = Page(f"Inside {inside.name}")
    shape = f"{inside.layers} layers" + (f" of {inside.heads} heads" if inside.heads else "")
    page.text(
        f"{inside.architecture}, {inside.parameters:,} parameters, {shape}. It read {len(inside.ids)} tokens; its mean "
        f"loss on them is {inside.loss:.3f} nats. Layers, heads and positions are counted from 0: L5H1 is head 1 of "
        "layer 5."
    )
    page.items([*summary_of(looked), *looked.remarks])
    add_style(page)
    _add_attention(page, looked)
    add_heads(page, inside)
    add_ablation(page, inside)
    add_residual(page, inside)
    add_lens(page, inside)
    add_attribution(page, inside)
    add_similarity(page, inside)
    if looked.difference is not None:
        _add_difference(page, inside, looked.difference)
    if looked.moments:
        _add_moments(page, looked)
    _add_checks(page, looked)
    add_data(page, looked)
    return page.html()


def _add_attention(page: Page, looked: Findings) -> None:
    inside = looked.inside
    page.heading("Attention over the text")
    if not inside.heads:
        page.text(inside.missing.get("attention") or inside.missing.get("scores") or "There are no attention weights.")
        return
    page.text(
        "Each small picture is one head: rows are layers, columns are heads. In a picture, each row is a token that "
        "attends, each column a token that it attends to; a token can only look back, so the upper right is empty. "
        "Choose a head to enlarge it; point at a token to color the text by where it attends."
    )
    scale = f'<span class="look-scale" data-signed="0">0 %<i style="{gradient("q")}"></i>100 %</span>'
    bar = '<label><input type="checkbox"> Hide the first token</label>'
    if looked.difference is not None:
        names = [inside.name, looked.difference.other.name, "the difference: the second minus the first"]
        radios = "".join(
            f'<label><input type="radio" name="look-mode" value="{value}"{" checked" if value == "0" else ""}>'
            f" {safe(name)}</label>"
            for value, name in zip(("0", "1", "difference"), names, strict=True)
        )
        bar += f'<fieldset aria-label="Which model">{radios}</fieldset>'
        scale += f'<span class="look-scale" data-signed="1" hidden>−100 %<i style="{gradient("d")}"></i>+100 %</span>'
    sink = float(inside.sink.nan_to_num(0).mean()) if inside.sink is not None else 0.0
    page.raw(
        explorer_frame(
            "look-heads",
            "Where each head looks. Colors grow with the square root of the weight. On average, "
            f"{percent(sink, 0)} of the attention goes to the first token: heads that find nothing to read "
            "attend there (the attention sink). "
            "Hide it to see the rest on the same scale.",
            bar=bar + scale,
            head=("Heads by layer; arrow keys move", "Attention of the chosen head; arrow keys move the row"),
        )
    )


def _add_difference(page: Page, inside: Inside, difference: Difference) -> None:
    other = difference.other
    page.heading(f"Against {other.name}")
    page.text(
        f"Both models read the same tokens. The loss on the text is {inside.loss:.3f} for {inside.name} and "
        f"{other.loss:.3f} for {other.name}. Differences are the second minus the first: orange is more, "
        "blue less, and the scale is symmetric around zero. In the first picture of this page, the switch "
        "shows the difference for every head."
    )
    if difference.attention is not None:
        page.picture(
            draw_by_head(100 * difference.attention, "Attention that moved, in %", digits=0, low=0.0),
            "The mean share of each head's attention that goes to different tokens in the other model.",
        )
    if difference.induction is not None:
        far = max(SMALL_CHANGE, float(difference.induction.nan_to_num(0).abs().max()))
        page.picture(
            draw_by_head(difference.induction, "Change of the induction score", diverging=True, low=-far, high=far),
            "Which heads became stronger or weaker induction heads.",
        )
    page.picture(
        draw_lines(
            [Line("", [(float(row), 100 * float(value)) for row, value in enumerate(difference.norms)])],
            title="Change of the residual stream's norm",
            x="layers passed",
            y="%",
        ),
        "Where the other model's states are larger or smaller.",
    )
    if difference.cka is not None:
        page.picture(
            draw_cka(difference.cka, "CKA of the two models", "the second, after layer", "the first, after layer"),
            "How similar each layer of the first model is to each layer of the second. A diagonal of 1 that fades "
            "with depth is typical of fine-tuning: it changes the last layers most.",
        )
    page.table(
        ("after token", f"{inside.name} predicts", f"{other.name} predicts", "KL, bits"),
        [
            (
                f"{position} {inside.text_tokens[position]}",
                *(_top(one, position) for one in (inside, other)),
                f"{bits:.3f}",
            )
            for bits, position in sorted(
                ((float(value), at) for at, value in enumerate(difference.divergence)), reverse=True
            )[:TOP]
        ],
        "Where the predictions differ most",
    )


def _top(inside: Inside, position: int) -> str:
    if inside.lens is None:
        return "–"
    token, share = inside.lens.tokens[-1, position, 0], inside.lens.probabilities[-1, position, 0]
    return f"{inside.lens_tokens[int(token)]} {float(share):.2f}"


def _add_moments(page: Page, looked: Findings) -> None:
    page.heading("Over training")
    page.text(
        "All checkpoints that the run has kept, measured on the same random tokens and the same text. An "
        "induction head often appears within few steps, and the loss on the second copy falls with it."
    )
    moments = looked.moments
    x = "checkpoint" if moments[0].step is None else "step"
    steps = [float(index if moment.step is None else moment.step) for index, moment in enumerate(moments)]
    known = [moment for moment in moments if moment.induction is not None]
    if known:
        lines = [
            Line(name, [(at, value) for at, value in zip(steps, values, strict=True) if value is not None])
            for name, values in (
                ("induction", [_best(moment.induction) for moment in moments]),
                ("previous token", [_best(moment.previous) for moment in moments]),
            )
        ]
        page.picture(
            draw_lines(lines, title="Highest score of any head", x=x, y="score"),
            "When the heads appear: the highest induction and previous-token scores at each checkpoint.",
        )
    losses = [
        Line(name, [(at, getattr(moment, key)) for at, moment in zip(steps, moments, strict=True)])
        for name, key in (
            ("random, first copy", "first_loss"),
            ("random, second copy", "second_loss"),
            ("the text", "text_loss"),
        )
    ]
    page.picture(
        draw_lines(losses, title="Loss by checkpoint", x=x, y="nats per token"),
        "What the heads do: where the loss on the second copy falls below that on the first, the model has learned "
        "to repeat.",
    )
    page.table(
        ("checkpoint", "induction", "previous token", "first copy", "second copy", "text"),
        [
            (
                moment.name,
                decimal(_best(moment.induction)),
                decimal(_best(moment.previous)),
                *(f"{loss:.3f}" for loss in (moment.first_loss, moment.second_loss, moment.text_loss)),
            )
            for moment in moments
        ],
        "Highest scores, and losses in nats per token",
    )


def _best(table: torch.Tensor | None) -> float | None:
    return None if table is None else max(highest(table))


def _add_checks(page: Page, looked: Findings) -> None:
    page.heading("Checks")
    page.text(
        "Each check compares two measured values that must be equal. Errors are relative to the expected size; a "
        "check fails if the error is larger than rounding can explain."
    )
    models = [looked.inside] + ([looked.difference.other] if looked.difference else [])
    page.table(
        ("check", "error", "limit", "result"),
        [
            (
                check.name if len(models) == 1 else f"{model.name}: {check.name}",
                f"{check.error:.1e}" if check.error else "0",
                f"{check.limit:.0e}",
                "holds" if check.holds else "fails",
            )
            for model in models
            for check in model.checks
        ],
    )
    how = [part.how for part in looked.inside.recording.parts if part is not None]
    if how:
        page.text(f"The parts of a layer are {how[0]}.")
