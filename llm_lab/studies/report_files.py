"""A report in two forms: report.md with its pictures as files, and report.html, a self-contained page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_lab.runs.disk import write_atomically
from llm_lab.runs.markdown import Markdown, fence, plain, table
from llm_lab.runs.page import Page


@dataclass(frozen=True)
class _Part:
    """A part. kind: heading, text, items, table, picture or code. text: also a caption. file: that of the picture."""

    kind: str
    text: str = ""
    head: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    svg: str = ""
    file: str = ""


class ReportFiles:
    """A report that is built from top to bottom and then written."""

    def __init__(self, title: str):
        self.title = title
        self._parts: list[_Part] = []

    def heading(self, text: str) -> None:
        self._parts.append(_Part("heading", text))

    def text(self, text: str) -> None:
        self._parts.append(_Part("text", " ".join(text.split())))

    def items(self, texts: Sequence[str]) -> None:
        if texts:
            self._parts.append(_Part("items", rows=tuple((text,) for text in texts)))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
        if rows:
            self._parts.append(_Part("table", caption, tuple(head), tuple(map(tuple, rows))))

    def picture(self, file: str, svg: str, caption: str) -> None:
        """Add a picture, kept as a file of this name. caption: what it shows."""
        self._parts.append(_Part("picture", caption, svg=svg, file=file))

    def code(self, text: str) -> None:
        self._parts.append(_Part("code", text))

    def blocks(self) -> list[dict[str, Any]]:
        """Return the parts in a form that JSON can hold, the pictures as SVG."""
        return [{key: value for key, value in vars(part).items() if value} for part in self._parts]

    def write(self, folder: Path) -> None:
        """Write report.md, report.html and the pictures."""
        for part in self._parts:
            if part.kind == "picture":
                write_atomically(folder / part.file, part.svg)
        write_atomically(folder / "report.md", self._markdown())
        write_atomically(folder / "report.html", self.html())

    def _markdown(self) -> str:
        blocks: list[str] = [f"# {plain(self.title)}"]
        for part in self._parts:
            match part.kind:
                case "heading":
                    blocks.append(f"## {plain(part.text)}")
                case "items":
                    blocks.append("\n".join(f"- {plain(row[0])}" for row in part.rows))
                case "table":
                    blocks.append("\n".join(table(part.head, part.rows)))
                    blocks += [plain(part.text)] if part.text else []
                case "picture":
                    blocks += [f"![{plain(part.text)}]({quote(part.file)})", Markdown(f"*{plain(part.text)}*")]
                case "code":
                    blocks.append(fence(part.text).rstrip())
                case _:
                    blocks.append(plain(part.text))
        return "\n\n".join(blocks) + "\n"

    def html(self) -> str:
        """Return the report as an HTML page."""
        page = Page(self.title)
        for part in self._parts:
            match part.kind:
                case "heading":
                    page.heading(part.text)
                case "items":
                    page.items(row[0] for row in part.rows)
                case "table":
                    page.table(part.head, part.rows, caption=part.text)
                case "picture":
                    page.picture(part.svg, part.text)
                case "code":
                    page.code(part.text)
                case _:
                    page.text(part.text)
        return page.html()
