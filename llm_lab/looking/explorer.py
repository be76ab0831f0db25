"""The part of a report that one can explore: many small matrices over the tokens, one of them large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lab.runs.page import Page
from llm_lab.runs.palette import STEPS, both
from llm_lab.runs.svg import safe

from .findings import Findings
from .look_tables import lower_triangle, plain, signed_lower_triangle

HERE = Path(__file__).parent


def add_style(page: Page) -> None:
    """Add the style of the explorers to a page."""
    page.raw(f"<style>{(HERE / 'explorer.css').read_text(encoding='utf-8')}</style>")


def add_data(page: Page, looked: Findings) -> None:
    """Add what the explorers show, and the script that draws it."""
    data = json.dumps(plain(data_of(looked)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in the data can end the element: tokens are text from elsewhere.
    hidden = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")
    script = (HERE / "explorer.js").read_text(encoding="utf-8")
    page.raw(f'<script type="application/json" id="look-data">{hidden}</script>', script=script)


def data_of(looked: Findings) -> dict[str, Any]:
    """Return what the script of the page draws."""
    inside = looked.inside
    data: dict[str, Any] = {
        "tokens": inside.text_tokens,
        "ramps": {name: _ramp(letter) for name, letter in (("share", "q"), ("signed", "d"))},
        "similarity": [signed_lower_triangle(one) for one in inside.similarity],
    }
    if inside.heads and inside.scores is not None:
        models = [inside] + ([looked.difference.other] if looked.difference else [])
        best = inside.named_heads("induction", -1.0)[0][0]
        data["attention"] = {
            "count": inside.heads,
            "first": best[0] * inside.heads + best[1],
            "models": [
                {"layers": [None if one is None else lower_triangle(one) for one in model.recording.attention]}
                for model in models
            ],
            "scores": [
                ["induction", inside.scores.induction, ""],
                ["previous token", inside.scores.previous, ""],
                ["first token", inside.sink, ""],
                ["entropy", inside.entropy, " bits"],
            ],
        }
    if inside.lens is not None:
        data["words"] = inside.lens_tokens
        data["lens"] = [
            [list(zip(*cell, strict=True)) for cell in zip(tokens, shares, strict=True)]
            for tokens, shares in zip(inside.lens.tokens.tolist(), inside.lens.probabilities.tolist(), strict=True)
        ]
    return data


def _ramp(letter: str) -> list[list[str]]:
    """Return the colors of a scale, on light and on dark."""
    return [[both(f"{letter}{step}")[index] for step in range(STEPS + 1)] for index in range(2)]


def gradient(letter: str) -> str:
    """Return a scale as a background, for the theme of the reader; the colors grow with the square root."""
    light, dark = _ramp(letter)
    stops = ", ".join(f"light-dark({a}, {b})" for a, b in list(zip(light, dark, strict=True))[::4])
    return f"background: linear-gradient(to right, {stops})"


def explorer_frame(
    name: str, about: str, *, bar: str = "", flow: bool = False, head: tuple[str, str] = ("", "")
) -> str:
    """Return the frame that the script fills with small pictures, a large one, and the text."""
    grid_class, grid_name, large_name = "look-grid look-flow" if flow else "look-grid", safe(head[0]), safe(head[1])
    return f"""<figure class="look" id="{name}">
<noscript><p>These pictures are drawn by a script in this page. The numbers are in look.json.</p></noscript>
<div class="look-bar">{bar}</div>
<div class="look-body">
<div class="look-grid-box"><div class="{grid_class}" role="group" aria-label="{grid_name}"></div></div>
<div>
<p class="look-title"></p><p class="look-facts"></p>
<div class="look-text" role="listbox" aria-label="The tokens of the text: choose one to see its row"></div>
<p class="look-row" aria-live="polite"></p>
<div class="look-large-box"><canvas class="look-large" tabindex="0" role="img" aria-label="{large_name}"></canvas></div>
<details class="look-table"><summary>This picture as a table: the three strongest of every row</summary>
<div class="wide"><table><thead><tr><th scope="col">from</th><th scope="col">first</th><th scope="col">second</th>
<th scope="col">third</th></tr></thead><tbody></tbody></table></div></details>
</div></div>
<figcaption>{safe(about)}</figcaption></figure>"""
