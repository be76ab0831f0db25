"""Record a session of the wizard in a pseudo-terminal as an animated SVG: `make recording`.

The program is the real one, started in an empty folder with one text file. Only the timing is changed: pauses are
shortened.
"""

from __future__ import annotations

import contextlib
import html
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.screens import Terminal  # noqa: E402

COLUMNS, ROWS = 80, 24
CELL_WIDTH, LINE_HEIGHT, MARGIN = 8.43, 19, 12
LONGEST_PAUSE = 1.6  # seconds between two frames
SHORTEST_PAUSE = 0.12
LONGEST_TRAINING = 1200.0
LONGEST_ANSWER = 12.0
STORIES = 1500
FIRST_WORDS = "One morning"
LAST_PAUSE = 5.0
TYPING = 0.07  # seconds per key
TRAINING_SECONDS = 14.0  # in the recording
FRAMES_OF_TRAINING = 45
BACKGROUND, FOREGROUND = "#16181d", "#d8dee9"
PALETTE = {
    "black": "#3b4252",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d8dee9",
    "brightblack": "#7f8896",
    "brightred": "#ff7b86",
    "brightgreen": "#b5e08c",
    "brightbrown": "#f0d08a",
    "brightblue": "#7cc4ff",
    "brightmagenta": "#d7a1ea",
    "brightcyan": "#7fdbe6",
    "brightwhite": "#ffffff",
}


@dataclass(frozen=True)
class Run:
    """Neighboring characters of one style."""

    column: int
    text: str
    color: str
    background: str
    bold: bool


Line = tuple[Run, ...]


@dataclass(frozen=True)
class Frame:
    """A screen, and how long it is shown."""

    lines: tuple[Line, ...]
    seconds: float


class Recorder(Terminal):
    """A terminal that records every screen with the time at which it appeared."""

    def __init__(self, *args: Any, **options: Any):
        self.seen: list[tuple[float, tuple[Line, ...]]] = []
        super().__init__(*args, **options)

    def _read(self, seconds: float) -> bool:
        has_changed = super()._read(seconds)
        if has_changed:
            lines = tuple(_line(self._screen.buffer[row]) for row in range(ROWS))
            if not self.seen or self.seen[-1][1] != lines:
                self.seen.append((time.monotonic(), lines))
        return has_changed

    def type(self, text: str) -> None:
        """Type a text key by key."""
        for key in text:
            self.child.send(key)
            self._read(TYPING)
            time.sleep(TYPING)
        self.settle()

    def look(self, seconds: float) -> None:
        """Read the screen for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._read(min(left, 0.05))


def _line(cells: Any) -> Line:
    runs: list[Run] = []
    for column in range(COLUMNS):
        cell = cells[column]
        color, background = _color(cell.fg, FOREGROUND), _color(cell.bg, "")
        if cell.reverse:
            color, background = background or BACKGROUND, color
        last = runs[-1] if runs else None
        style = (color, background, cell.bold)
        if last and last.column + len(last.text) == column and (last.color, last.background, last.bold) == style:
            runs[-1] = Run(last.column, last.text + cell.data, *style)
        else:
            runs.append(Run(column, cell.data, *style))
    return tuple(run for run in runs if run.text.strip() or run.background)


def _color(name: str, default: str) -> str:
    if name == "default":
        return default
    return PALETTE.get(name) or (f"#{name}" if len(name) == 6 else default)


def frames_of(seen: Sequence[tuple[float, tuple[Line, ...]]], training: tuple[float, float]) -> list[Frame]:
    """Return the frames with pauses a reader can follow. training: when it began and ended; it is shown faster."""
    speed = max(1.0, (training[1] - training[0]) / TRAINING_SECONDS)
    frames: list[Frame] = []
    for number, (at, lines) in enumerate(seen):
        is_training = training[0] <= at < training[1]
        least = TRAINING_SECONDS / FRAMES_OF_TRAINING if is_training else SHORTEST_PAUSE
        if number + 1 == len(seen):
            pause = LAST_PAUSE
        else:
            pause = (seen[number + 1][0] - at) / speed if is_training else min(seen[number + 1][0] - at, LONGEST_PAUSE)
        if frames and frames[-1].seconds < least:  # too short to be seen, so it is replaced
            pause += frames.pop().seconds
        frames.append(Frame(lines, pause))
    return frames


def svg_of(frames: Sequence[Frame]) -> str:
    """Return an SVG that shows the frames in an endless loop; it has every different line only once."""
    width, height = round(COLUMNS * CELL_WIDTH + 2 * MARGIN), ROWS * LINE_HEIGHT + 2 * MARGIN
    names: dict[Line, str] = {}
    for frame in frames:
        for line in frame.lines:
            if line:
                names.setdefault(line, f"l{len(names)}")
    total = sum(frame.seconds for frame in frames)
    steps, begun = [], 0.0
    for number, frame in enumerate(frames):
        steps.append(f"{100 * begun / total:.3f}%{{transform:translateY({-number * height}px)}}")
        begun += frame.seconds
    classes = {color: f"c{number}" for number, color in enumerate(sorted({r.color for line in names for r in line}))}
    rules = "".join(f".{name}{{fill:{color}}}" for color, name in classes.items())
    style = (
        f"text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}"
        f".b{{font-weight:bold}}{rules}@keyframes play{{{''.join(steps)}100%{{transform:translateY("
        f"{-(len(frames) - 1) * height}px)}}}}#film{{animation:play {total:.2f}s step-end infinite}}"
        "@media (prefers-reduced-motion:reduce){#film{animation:none;"
        f"transform:translateY({-(len(frames) - 1) * height}px)}}}}"
    )
    lines = "".join(f'<g id="{name}">{_drawn(line, classes)}</g>' for line, name in names.items())
    film = "".join(
        f'<use href="#{names[line]}" x="0" y="{number * height + row * LINE_HEIGHT}"/>'
        for number, frame in enumerate(frames)
        for row, line in enumerate(frame.lines)
        if line
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="A recorded session of the LLM Lab wizard"><style>{style}</style>'
        f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/><defs>{lines}</defs>'
        f'<svg x="{MARGIN}" y="{MARGIN}" width="{width - 2 * MARGIN}" height="{height - 2 * MARGIN}">'
        f'<g id="film">{film}</g></svg></svg>\n'
    )


def _drawn(line: Line, classes: dict[str, str]) -> str:
    drawn = []
    for run in line:
        x, length = run.column * CELL_WIDTH, len(run.text) * CELL_WIDTH
        if run.background:
            drawn.append(f'<rect x="{x:.1f}" width="{length:.1f}" height="{LINE_HEIGHT}" fill="{run.background}"/>')
        left = len(run.text) - len(run.text.lstrip())
        text = run.text.strip()
        if text:
            bold = " b" if run.bold else ""
            x, length = x + left * CELL_WIDTH, len(text) * CELL_WIDTH
            drawn.append(
                f'<text x="{x:.1f}" y="14" textLength="{length:.1f}" class="{classes[run.color]}{bold}">'
                f"{html.escape(text)}</text>"
            )
    return "".join(drawn)


def record_session() -> list[Frame]:
    """Train on a text in the wizard and chat with the model, as a new user would; arrow keys and Enter only."""
    from llm_lab.data.builtin import builtin_documents
    from tests.test_words import PATTERN

    enter, down, up = "\r", "\x1b[B", "\x1b[A"
    # The model writes what it has read, and the recording is text of the project.
    plain = (story for story in builtin_documents("stories") if not PATTERN.search(story))
    Path("my-stories.txt").write_text("\n\n".join(islice(plain, STORIES)), encoding="utf-8")
    with Recorder(columns=COLUMNS, rows=ROWS) as screen:
        screen.wait_for("What would you like to do?")
        screen.look(1.5)
        screen.press(enter)
        screen.wait_for("Which text?")
        screen.look(1.5)
        screen.press(enter)
        screen.wait_for("How large should the model be?")
        screen.look(1.0)
        screen.press(down, down)
        screen.look(0.8)
        screen.press(up, up, enter)
        screen.wait_for("Start now?")
        screen.look(1.6)
        screen.press(enter)
        begun = time.monotonic()
        screen.wait_for("What next with", LONGEST_TRAINING)
        ended = time.monotonic()
        screen.look(1.6)
        screen.press(enter)
        screen.wait_for("/help")
        screen.look(0.8)
        screen.type(FIRST_WORDS)
        screen.press(enter)
        screen.look(LONGEST_ANSWER)
        return frames_of(screen.seen, (begun, ended))


def main() -> None:
    """Write docs/images/wizard.svg, or the given file."""
    file = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images" / "wizard.svg").resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        frames = record_session()
    file.write_text(svg_of(frames), encoding="utf-8")
    seconds = sum(frame.seconds for frame in frames)
    sys.stdout.write(f"{file.name}: {len(frames)} frames, {seconds:.0f} s, {file.stat().st_size / 1000:.0f} kB" + "\n")


if __name__ == "__main__":
    main()
