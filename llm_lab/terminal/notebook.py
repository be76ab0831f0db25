"""What a run shows in a notebook while it works: one output, redrawn with progress, numbers and curves."""

from __future__ import annotations

import html
import time
from collections.abc import Callable
from typing import Any

from llm_lab.estimate.formatting import clock
from llm_lab.events import (
    CheckpointSaved,
    Event,
    MetricsLogged,
    Notice,
    Progress,
    RunWarning,
    SampleWritten,
    ScoresReported,
    TrainingEnded,
    TrainingStarted,
)
from llm_lab.runs.charts import Series, draw_panels
from llm_lab.runs.figure import is_number

from .console import make_console, printable
from .scores_table import print_scores
from .track import Track, describe_progress, numbers_of

REDRAW_SECONDS = 1.0
MOST_ROWS = 2_000  # of the curves; older rows are thinned out


class NotebookDisplay:
    """One output per training, redrawn about once a second. Needs IPython and a notebook."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic):
        self.console = make_console()
        self._now = now
        self._track = Track(now)
        self._rows: list[dict[str, Any]] = []
        self._line = ""
        self._output: Any = None
        self._drawn_at = -REDRAW_SECONDS

    def __enter__(self) -> NotebookDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self._draw(at_once=True)

    def __call__(self, event: Event) -> None:
        match event:
            case Notice(text) | RunWarning(text):
                self._say(text)
            case Progress(label, done, total):
                self._line = f"{label} {describe_progress(done, total)}"
                self._draw(at_once=done >= total > 0)
            case TrainingStarted(max_steps, first_step, facts, earlier, samples):
                self._track, self._rows, self._output = Track(self._now), [dict(row) for row in earlier], None
                self._track.begin(max_steps, first_step, facts, earlier, samples)
                self._draw(at_once=True)
            case MetricsLogged(row):
                self._track.log(row)
                self._rows.append(dict(row))
                if len(self._rows) > MOST_ROWS:
                    self._rows = [*self._rows[:-1:2], self._rows[-1]]
                self._draw()
            case SampleWritten(step, prompt, text):
                self._track.write(step, prompt, text)
                self._draw()
            case CheckpointSaved(step):
                self._track.saved_step = step
            case ScoresReported(scores):
                print_scores(self.console, scores)
            case TrainingEnded():
                self._draw(at_once=True)
                self._track, self._line = Track(self._now), ""

    def _say(self, text: str) -> None:
        from rich.text import Text

        self.console.print(Text(printable(text)), soft_wrap=True)

    def _draw(self, *, at_once: bool = False) -> None:
        if not (self._track.begun or self._line) or (not at_once and self._now() - self._drawn_at < REDRAW_SECONDS):
            return
        from IPython.display import HTML, display

        self._drawn_at = self._now()
        page = HTML(self._html())
        if self._output is None:
            self._output = display(page, display_id=True)
        else:
            self._output.update(page)

    def _html(self) -> str:
        """Return the heading, a progress bar, the newest numbers, the curves of the first panel, and a sample."""
        track = self._track
        if not track.begun:
            return f"<p>{_safe(self._line)}</p>"
        left = track.seconds_left()
        times = clock(track.elapsed()) + (f", {clock(left)} left" if left is not None else "")
        bar = f'<progress style="width:20em" max="{track.max_steps}" value="{track.step}"></progress>'
        head = f"<b>{_safe(track.heading)}</b> {bar} step {track.step:,} of {track.max_steps:,}, {times}"
        numbers: dict[str, str] = {}
        for row in self._rows[-20:]:
            shown = {key: value for key, value in row.items() if key != "train_tokens"}
            numbers |= dict(numbers_of(shown, track.facts))
        texts = " · ".join(f"{_safe(name)} {_safe(number)}" for name, number in numbers.items())
        sample = ""
        if track.samples:
            step, prompt, text = track.samples[-1]
            sample = f"<p>Sample at step {step:,}: {_safe(prompt)}</p><pre>{_safe(text)}</pre>"
        return f"<p>{head}</p><p>{texts}</p>{self._curves()}{sample}"

    def _curves(self) -> str:
        for panel in self._track.panels():
            series: Series = {
                key: [(row["step"], row[key]) for row in self._rows if is_number(row.get(key))] for key in panel.keys
            }
            series = {key: points for key, points in series.items() if points}
            if series:
                return draw_panels([(panel, series)]) if max(map(len, series.values())) > 1 else ""
        return ""


def _safe(value: object) -> str:
    return html.escape(printable(str(value)))
