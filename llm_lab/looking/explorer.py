"""The interactive part of a report: many small matrices over the tokens, one of them enlarged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_lab.runs.page import Page
from llm_lab.runs.palette import ramp, ramps
from llm_lab.runs.svg import safe

from .findings import Findings
from .inside import Inside
from .look_tables import lower_triangle, plain, signed_lower_triangle

HERE = Path(__file__).parent


def add_style(page: Page) -> None:
    """Add the style of the explorers to a page."""
    page.raw(f"<style>{_read('maps.css')}{_read('explorer.css')}</style>")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def add_data(page: Page, looked: Findings) -> None:
    """Add the data of the explorers, and the script that draws it."""
    data = json.dumps(plain(data_of(looked)), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Escaped so that the data can't end the element: tokens are untrusted text.
    hidden = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("\u2028", "\\u2028")
    # maps.js is a module for the web page; here, its functions are in the same scope as the code that uses them.
    maps = _read("maps.js").replace("\nexport ", "\n")
    script = f'"use strict";\n(() => {{\n{maps}\n{_read("explorer.js")}}})();\n'
    page.raw(f'<script type="application/json" id="look-data">{hidden}</script>', script=script)


def data_of(looked: Findings, *, weight_bytes: int = 1) -> dict[str, Any]:
    """Return the data that maps.js draws. weight_bytes: 1 or 2 for each attention weight."""
    inside = looked.inside
    data: dict[str, Any] = {
        "tokens": inside.text_tokens,
        "ramps": ramps(),
        "similarity": [signed_lower_triangle(one) for one in inside.similarity],
    }
    if inside.heads and inside.scores is not None:
        models = [inside] + ([looked.difference.other] if looked.difference else [])
        best = inside.named_heads("induction", -1.0)[0][0]
        data["attention"] = {
            "count": inside.heads,
            "first": best[0] * inside.heads + best[1],
            "bytes": weight_bytes,
            "models": [{"layers": _triangles(model, weight_bytes)} for model in models],
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


def _triangles(inside: Inside, weight_bytes: int) -> list[str | None]:
    return [None if one is None else lower_triangle(one, weight_bytes) for one in inside.recording.attention]


def gradient(letter: str) -> str:
    """Return a color scale as a CSS background for the reader's theme; the color follows the value's square root."""
    light, dark = ramp(letter)
    stops = ", ".join(f"light-dark({a}, {b})" for a, b in list(zip(light, dark, strict=True))[::4])
    return f"background: linear-gradient(to right, {stops})"


def explorer_frame(
    name: str, about: str, *, bar: str = "", flow: bool = False, head: tuple[str, str] = ("", "")
) -> str:
    """Return the frame that the script fills with small pictures, a large one and the text (see maps.js)."""
    names = f'data-grid="{safe(head[0])}" data-large="{safe(head[1])}"' + " data-flow" * flow
    return f"""<figure class="look" id="{name}" {names}>
<noscript><p>These pictures are drawn by a script in this page. The numbers are in look.json.</p></noscript>
<div class="look-bar">{bar}</div>
<figcaption>{safe(about)}</figcaption></figure>"""
