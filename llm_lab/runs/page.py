"""One HTML document of texts, pictures and tables: self-contained, for light and dark themes and any width."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from llm_lab.safe_text import printable

from .palette import COLORS
from .svg import FONT, safe

_NUMBER = re.compile(r"[-−+±]?\s*[\d.,]+(e[-+]?\d+)?\s*(%|[a-zA-Zµ/]{1,4})?|nan|-?inf", re.IGNORECASE)


class Page:
    """A page that is built from top to bottom. All text is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []
        self._scripts: list[str] = []

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading; level 1 is the title of the page."""
        self._parts.append(f"<h{level}>{safe(text)}</h{level}>")

    def text(self, text: str) -> None:
        """Add a paragraph; an empty line in the text starts another one. Text between backticks becomes code."""
        self._parts += [f"<p>{_inline(part.strip())}</p>" for part in re.split(r"\n\s*\n", text) if part.strip()]

    def items(self, texts: Iterable[str]) -> None:
        """Add a list."""
        lines = "".join(f"<li>{_inline(text)}</li>" for text in texts)
        self._parts.append(f"<ul>{lines}</ul>" if lines else "")

    def code(self, text: str) -> None:
        """Add a block of code or of other text whose line breaks and spaces matter."""
        self._parts.append(f"<pre><code>{_escaped(text)}</code></pre>")

    def picture(self, svg: str, caption: str) -> None:
        """Add a picture, as returned by the drawing functions, with a sentence that describes it."""
        if not svg.startswith("<svg"):
            raise ValueError("picture needs an SVG")
        self._parts.append(f"<figure>{_scrolling(svg, caption)}<figcaption>{_inline(caption)}</figcaption></figure>")

    def table(self, head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> None:
        """Add a table; the first cell of a row is its heading. Columns of numbers are aligned to the right."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        right = [_are_numbers([row[at] for row in cells if at < len(row)]) for at in range(len(head))]
        kind = [' class="number"' if each else "" for each in right]
        kind += [""] * max(0, max(map(len, cells), default=0) - len(kind))
        top = "".join(f'<th scope="col"{kind[at]}>{safe(name)}</th>' for at, name in enumerate(head))
        lines = []
        for row in cells:
            first, *rest = row or [""]
            others = "".join(f"<td{kind[at]}>{safe(cell)}</td>" for at, cell in enumerate(rest, 1))
            lines.append(f'<tr><th scope="row"{kind[0]}>{safe(first)}</th>{others}</tr>')
        body = "".join(lines) or f'<tr><td colspan="{max(len(head), 1)}">no rows</td></tr>'
        name = caption or ", ".join(head)
        table = f'<table aria-label="{safe(name)}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
        # Not a caption element, which would be limited to the width of the table.
        said = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        self._parts.append(f'<figure class="table">{said}{_scrolling(table, name)}</figure>')

    @contextmanager
    def details(self, summary: str) -> Iterator[None]:
        """Fold everything added within the block under a line that opens it."""
        self._parts.append(f"<details><summary>{safe(summary)}</summary>")
        yield
        self._parts.append("</details>")

    def raw(self, html: str, script: str = "") -> None:
        """Add our own HTML and script, which are not escaped."""
        self._parts.append(html)
        if script:
            self._scripts.append(script)

    def html(self) -> str:
        """Return the document. Its content security policy allows no request, and no script but those added."""
        allowed = " ".join(f"'sha256-{_digest(script)}'" for script in self._scripts) or "'none'"
        policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {allowed}"
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            f"<title>{safe(self.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{safe(self.title)}</h1>\n"
            + "\n".join(self._parts)
            + "\n</main>\n"
            + "".join(f"<script>{script}</script>\n" for script in self._scripts)
            + "</body>\n</html>\n"
        )


def _escaped(text: str) -> str:
    """Return an escaped text that keeps its line breaks."""
    return "\n".join(safe(line) for line in printable(str(text)).split("\n"))


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether most of a column's cells that are not empty are numbers; the others may be words such as "failed"."""
    filled = [cell.strip() for cell in cells if cell.strip(" -–—")]
    return 2 * sum(bool(_NUMBER.fullmatch(cell)) for cell in filled) > len(filled)


def _inline(text: str) -> str:
    """Return an escaped text whose parts between backticks become code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", _escaped(text))


def _scrolling(html: str, name: str) -> str:
    """Return content that scrolls horizontally, also by keyboard, if the screen is too narrow."""
    return f'<div class="wide" role="region" aria-label="{safe(name)}" tabindex="0">{html}</div>'


def _digest(script: str) -> str:
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _colors(index: int) -> str:
    return " ".join(f"--{name}: {pair[index]};" for name, pair in COLORS.items())


_STYLE = f"""
:root {{ {_colors(0)} color-scheme: light dark; }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colors(1)} }} }}
* {{ box-sizing: border-box; }}
html {{ -webkit-text-size-adjust: 100%; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 {FONT}; overflow-wrap: break-word; }}
main {{ max-width: 752px; margin: 0 auto; padding: 48px 32px 96px; }}
h1 {{ font-size: 28px; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 24px; }}
h2 {{ font-size: 20px; line-height: 1.3; margin: 48px 0 12px; }}
h3 {{ font-size: 16px; margin: 32px 0 8px; }}
p, ul {{ margin: 0 0 16px; }}
ul {{ padding-left: 22px; }}
figure {{ margin: 28px 0; }}
.wide {{ overflow-x: auto; margin: 0 0 16px; }}
figure .wide {{ margin: 0 -16px; }}  /* the edge of a picture is outside the column of text */
.wide:focus-visible, summary:focus-visible {{ outline: 2px solid var(--c0); outline-offset: 2px; }}
.lab-picture {{ display: block; width: 100%; height: auto; min-width: 600px; }}
figcaption {{ color: var(--soft); font-size: 14px; line-height: 1.5; }}
figcaption {{ margin-top: 6px; }}
figure.table {{ margin: 0 0 24px; }}
figure.table .wide {{ margin: 0; }}
figure.table figcaption {{ margin: 0 0 8px; }}
table {{ border-collapse: collapse; font-size: 14px; line-height: 1.45; }}
th, td {{ padding: 7px 24px 7px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid); }}
th:last-child, td:last-child {{ padding-right: 0; }}
thead th {{ color: var(--soft); font-weight: 500; border-bottom-color: var(--axis); vertical-align: bottom; }}
tbody th {{ font-weight: 500; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
tbody .number {{ white-space: nowrap; }}
code {{ font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere;
  padding: 14px 16px; margin: 0 0 16px; border: 1px solid var(--grid); border-radius: 8px;
  font: 13px/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }}
pre code {{ font: inherit; }}
details {{ margin: 0 0 16px; }}
summary {{ cursor: pointer; color: var(--soft); margin-bottom: 12px; }}
@media (max-width: 560px) {{ main {{ padding: 28px 16px 64px; }} h1 {{ font-size: 24px; }} }}
@media print {{ main {{ max-width: none; padding: 0; }} }}
"""
