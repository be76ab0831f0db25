"""The sections of a report about one model: heads, ablation, the residual stream, lenses, similarity."""

from __future__ import annotations

import math
from typing import Any

import torch

from llm_lab.estimate.formatting import percent
from llm_lab.runs.page import Page
from llm_lab.runs.plots import Line, draw_bars, draw_heatmap, draw_lines, draw_scatter
from llm_lab.runs.svg import safe

from .explorer import explorer_frame, gradient
from .inside import Inside
from .look_tables import head_name, head_rows

TOP = 12  # heads in a table
HEADS_CAPTION = (
    "The heads with the highest induction scores. Same token: the attention to a token's own first occurrence, on the "
    "random tokens. First token: the attention to the first token of the text. Attribution: what the head adds to the "
    "logit of the prediction, as below."
)
FEW = 24  # bars in a picture


def numbered(count: int) -> list[str]:
    return [str(index) for index in range(count)]


def rows_of(table: torch.Tensor) -> list[list[float | None]]:
    return [[value if math.isfinite(value) else None for value in row] for row in table.tolist()]


def draw_by_head(table: torch.Tensor, title: str, **options: Any) -> str:
    """Draw a value of every head, (layers, heads)."""
    layers, heads = table.shape
    return draw_heatmap(
        rows_of(table), rows=numbered(layers), columns=numbered(heads), title=title, x="head", y="layer", **options
    )


def add_heads(page: Page, inside: Inside) -> None:
    scores = inside.scores
    if scores is None or not inside.heads or inside.entropy is None:
        return
    page.heading("What the heads do")
    page.text(
        "The scores are measured on random tokens that are repeated once: A B C … A B C …. The induction score is the "
        "attention from a token in the second copy to the token that followed it in the first: a head with a "
        "high score finds what came next the last time. The previous-token score is the attention to the token "
        "just before; induction heads depend on such a head in an earlier layer. Scores are shares of "
        "attention, from 0 to 1."
    )
    for name, table, caption in (
        (
            "Induction score",
            scores.induction,
            "Strong cells are induction heads: they look at what followed the same token before.",
        ),
        (
            "Previous-token score",
            scores.previous,
            "Strong cells are previous-token heads: they pass on which token came before. Induction heads need one "
            "in a layer below them.",
        ),
    ):
        picture = draw_by_head(table, name, low=0.0, high=1.0)
        page.picture(picture, caption)
    picture = draw_by_head(inside.entropy, "Entropy of attention on the text, in bits")
    page.picture(
        picture,
        "How widely each head spreads its attention: 0 bits is a single token, each further bit doubles the number of "
        "tokens it spreads over.",
    )
    rows = numbered(inside.layers)
    lines = [
        Line(name, [(float(layer), value) for layer, value in enumerate(highest(table))])
        for name, table in (
            ("induction", scores.induction),
            ("previous token", scores.previous),
            ("first token", inside.sink),
        )
        if table is not None
    ]
    if len(rows) > 1:
        page.picture(
            draw_lines(lines, title="Strongest head of each layer", x="layer", y="score"),
            "How the patterns are spread over depth: the highest score of any head in each layer.",
        )
    table = sorted(_head_cells(inside), key=lambda row: -float(row[1] or 0))
    head = ("head", "induction", "previous token", "same token", "first token", "entropy, bits", "attribution")
    page.table(head, [_cells(row) for row in table[:TOP]], HEADS_CAPTION)
    if len(table) > TOP:
        with page.details(f"All {len(table):,} heads"):
            page.table(head, [_cells(row) for row in sorted(table, key=lambda row: (row[7], row[8]))])


def highest(table: torch.Tensor) -> list[float]:
    return table.nan_to_num(0).max(dim=1).values.tolist()


def _head_cells(inside: Inside) -> list[tuple[Any, ...]]:
    """Return (name, scores ..., layer, head) of every head."""
    found = []
    for row in head_rows(inside):
        names = ("induction", "previous", "duplicate", "first_token", "entropy_bits", "attribution")
        values = tuple(row[name] for name in names)
        found.append((head_name(row["layer"], row["head"]), *values, row["layer"], row["head"]))
    return found


def _cells(row: tuple[Any, ...]) -> list[str]:
    return [str(row[0]), *(decimal(value) for value in row[1:7])]


def decimal(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def add_ablation(page: Page, inside: Inside) -> None:
    if not inside.ablations or inside.scores is None:
        return
    scores = inside.scores
    page.heading("What the model loses without a head")
    which = "each head" if inside.every_head_ablated else "each of the top heads, and of some random ones,"
    page.text(
        f"Attention shows where a head looks, not whether the model uses it. Here {which} was set to zero, one at a "
        "time, and the loss measured again: on repeated random tokens (the second copy) and on the text. This is the "
        "causal check. A rise in loss means that the model needs the head for that; near zero means that it does not "
        "need it."
    )
    ordered = sorted(inside.ablations, key=lambda one: -one.repeated)
    shown = ordered if len(ordered) <= FEW else ordered[: FEW - 1] + ordered[-1:]
    control = {one: " (random)" if one.control else "" for one in shown}
    page.picture(
        draw_bars(
            [(head_name(one.layer, one.head) + control[one], one.repeated) for one in shown],
            title="Rise of the loss on repeated tokens without each head",
            x="nats per token",
        ),
        "The longest bars are the heads that the model needs to repeat what it has read."
        + ("" if inside.every_head_ablated else " Heads marked as random were chosen by chance, for comparison."),
    )
    points = [(float(scores.induction[one.layer, one.head]), one.repeated, None) for one in inside.ablations]
    page.picture(
        draw_scatter(points, title="Induction score and effect", x="induction score", y="rise of the loss, nats"),
        "Each point is a head. If points on the right are high, the model uses the heads that the score finds. A "
        "head at the lower right has the pattern but is not needed, for example because others do the same. A head "
        "at the upper left matters in another way: for example, induction heads depend on previous-token heads.",
    )
    page.table(
        ("head", "on repeated tokens", "on the text", "induction", "previous token", "chosen"),
        [
            (
                head_name(one.layer, one.head),
                f"{one.repeated:+.4f}",
                f"{one.text:+.4f}",
                decimal(float(scores.induction[one.layer, one.head])),
                decimal(float(scores.previous[one.layer, one.head])),
                "at random" if one.control else "every head" if inside.every_head_ablated else "by score",
            )
            for one in shown
        ],
        "Rise of the loss in nats per token without each head",
    )


def add_residual(page: Page, inside: Inside) -> None:
    page.heading("The residual stream")
    page.text(
        "Every layer reads the residual stream and adds to it: first its attention, then its feed-forward network. "
        "The norms are means over all tokens but the first, whose state is often many times larger."
    )
    if "parts" in inside.missing:
        page.text(inside.missing["parts"])
    lines = [Line("residual stream", [(float(row), float(norm)) for row, norm in enumerate(inside.norms)])]
    if inside.added is not None:
        for index, name in enumerate(("attention adds", "feed-forward adds")):
            lines.append(Line(name, [(row + 1.0, float(norm)) for row, norm in enumerate(inside.added[:, index])]))
    page.picture(
        draw_lines(lines, title="Norms by layer", x="layers passed", y="norm", log_y=True),
        "How much the stream grows, and how much the attention and the feed-forward network of each layer add to it. "
        "Where a curve is close to the stream itself, that layer changes much of it.",
    )
    if inside.added is None:
        return
    with page.details("Norms and shares as a table"):
        page.table(
            ("layer", "stream after it", "attention adds", "feed-forward adds", "attention's share"),
            [
                (
                    str(layer),
                    f"{norm:.2f}",
                    f"{attention:.2f}",
                    f"{mlp:.2f}",
                    percent(attention / (attention + mlp), 0),
                )
                for layer, (norm, (attention, mlp)) in enumerate(
                    zip(inside.norms[1:].tolist(), inside.added.tolist(), strict=True)
                )
            ],
        )


def add_lens(page: Page, inside: Inside) -> None:
    lens = inside.lens
    page.heading("What each layer would predict: the logit lens")
    if lens is None:
        page.text(inside.missing["lens"])
        return
    page.text(
        "The final norm and the head are applied after every layer, as if the model ended there. Read a column from "
        "bottom to top to see a prediction form. The predictions of early layers are often poor, because the lens "
        "fits the last layers best."
    )
    head = "".join(f'<th scope="col">{safe(token)}</th>' for token in inside.text_tokens)
    rows = []
    for row in reversed(range(len(lens.tokens))):
        label = "input" if row == 0 else str(row - 1)
        cells = "".join(
            f'<td tabindex="-1"{" class=same" if token == last else ""} style="--p:{share:.0%}">'
            f"{safe(inside.lens_tokens[token])}</td>"
            for token, last, share in zip(
                lens.tokens[row, :, 0].tolist(),
                lens.tokens[-1, :, 0].tolist(),
                lens.probabilities[row, :, 0].tolist(),
                strict=True,
            )
        )
        rows.append(f'<tr><th scope="row">{label}</th>{cells}</tr>')
    page.raw(
        '<figure class="look"><p class="look-row" id="look-lens-cell" aria-live="polite"></p>'
        '<div class="look-lens-box"><table id="look-lens"><thead><tr><th scope="col">layer</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div><figcaption>The top prediction for the next "
        "token, after each token of the text (columns) and each layer (rows). The stronger the color, the higher its "
        "probability; bold where it is already the model's final prediction. The first row is the "
        "model's own prediction.</figcaption></figure>"
    )
    page.picture(
        draw_lines(
            [Line("", [(float(layer), float(loss)) for layer, loss in enumerate(lens.next_loss[1:])])],
            title="Loss of the logit lens on the text",
            x="after layer",
            y="nats per token",
        ),
        "How well each layer predicts the text through the lens: the layers where the curve falls improve the "
        "prediction most.",
    )


def add_attribution(page: Page, inside: Inside) -> None:
    found = inside.attribution
    if found is None:
        return
    word, after = inside.lens_tokens[found.token], inside.text_tokens[found.position]
    page.heading("Which parts write the prediction: direct logit attribution")
    page.text(
        f"After “{after}”, the model's top prediction is “{word}”. Its logit is a sum over everything that was "
        "added to the residual stream. Positive values raise it above the mean of the vocabulary, negative "
        f"ones lower it. The parts sum to {found.above_mean:.2f} above the mean, and to the logit of "
        f"{found.logit:.2f} itself. Only direct effects count: a head that another head depends on may show none."
    )
    if found.attention is not None and found.feed_forward is not None:
        lines = [
            Line(name, [(float(layer), float(value)) for layer, value in enumerate(values)])
            for name, values in (("attention", found.attention), ("feed-forward", found.feed_forward))
        ]
        page.picture(
            draw_lines(lines, title=f"Attribution to “{word}” by layer", x="layer", y="logit above the mean"),
            "Which layers write the prediction directly, by attention and by the feed-forward network. The embedding "
            f"adds {found.embedding:.2f}.",
        )
    if found.heads is not None:
        page.picture(
            draw_by_head(found.heads, f"Attribution to “{word}” by head", diverging=True),
            "Which heads raise the logit of the prediction directly, and which lower it.",
        )
    elif found.why:
        page.text(inside.missing.get("heads of attribution", ""))
    with page.details("All parts as a table"):
        page.table(
            ("part", "above the mean", "logit"),
            [(name, f"{above:+.3f}", f"{logit:+.3f}") for name, logit, above in found.rows]
            + [("sum", f"{found.above_mean:+.3f}", f"{found.total:+.3f}")],
        )


def add_similarity(page: Page, inside: Inside) -> None:
    page.heading("How similar positions and layers are")
    page.raw(
        explorer_frame(
            "look-positions",
            "The cosine similarity of the states of all pairs of tokens, after each layer. Blocks are groups of tokens "
            "that the model has made alike; one uniform color means that all states share a large common direction.",
            bar=f'<span class="look-scale">−1<i style="{gradient("d")}"></i>1</span>',
            flow=True,
            head=("Layers; arrow keys move", "Cosine similarity of the tokens; arrow keys move the row"),
        )
    )
    page.picture(
        draw_lines(
            [Line("", [(float(row), float(value)) for row, value in enumerate(inside.mean_similarity)])],
            title="Mean cosine of different tokens",
            x="layers passed",
            y="cosine",
        ),
        "How alike the states of different tokens are on average, without the first token. A fall at the end "
        "means that the last layers separate the tokens again, to predict different words.",
    )
    if inside.cka is None:
        page.text(inside.missing.get("cka", ""))
        return
    page.picture(draw_cka(inside.cka, "CKA of layers", "after layer", "after layer"), CKA_CAPTION)


CKA_CAPTION = (
    "Linear CKA compares which tokens two layers see as alike, whatever the directions: 1 is the same structure, 0 "
    "none in common. Blocks along the diagonal are groups of layers that do similar work. The estimate is corrected "
    "for the bias of short texts, and leaves out the first token."
)


def draw_cka(values: torch.Tensor, title: str, x: str, y: str) -> str:
    names = ["input", *numbered(len(values) - 1)]
    return draw_heatmap(rows_of(values), rows=names, columns=names, title=title, x=x, y=y, low=0.0, high=1.0)
