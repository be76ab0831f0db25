"""metrics.jsonl as columns, for curves: only what was appended is read, and thinning keeps outliers.

A file of 100,000 lines is read in parts, so that a page has its first curve at once. When a run resumes, it replaces
the file by one without the steps that it repeats; the reader detects that and starts again.
"""

from __future__ import annotations

import math
import os
import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from llm_lab.runs.record import row_of

# The axes of the curves.
AXES = ("step", "train_tokens", "wall_seconds")
PART_BYTES = 1 << 18  # read and parsed at once; other requests wait that long
MOST_SECONDS = 0.2  # of parsing per request; the next request continues
MOST_COLUMNS = 400
MARK_BYTES = 64  # from the end of what was read, to detect another file with the same inode
_NAN = math.nan


@dataclass
class Axis:
    """The value of an axis for every row, NaN if it has none.

    rises: whether the values never decrease. whole: whether every row has a value.
    """

    places: array[float] = field(default_factory=lambda: array("d"))
    rises: bool = True
    whole: bool = True

    def extend(self, places: array[float]) -> None:
        known = places.tolist()
        self.whole = self.whole and not math.isnan(sum(known))
        self.rises = self.rises and (not self.places or known[0] >= self.places[-1]) and known == sorted(known)
        self.places.extend(places)


@dataclass
class Column:
    """The values of a metric, and the row numbers of these values."""

    rows: array[int] = field(default_factory=lambda: array("L"))
    values: array[float] = field(default_factory=lambda: array("d"))
    finite: bool = True


class Columns:
    """The columns of one metrics.jsonl. `read` continues reading; everything else is about what has been read.

    generation: changes when the file is replaced. broken: the numbers of lines that can't be parsed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation = 0
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self.generation = max(self.generation + 1, time.time_ns() // 1000)
        self.count = 0
        self.axes = {axis: Axis() for axis in AXES}
        self.columns: dict[str, Column] = {}
        self.broken: list[int] = []
        self.complete = True  # whether everything has been read
        self._lines = 0
        self._offset = 0
        self._inode: int | None = None
        self._mark = b""

    def read(self, seconds: float = MOST_SECONDS) -> None:
        """Read what was appended, for at most this many seconds."""
        with self._lock:
            until = time.monotonic() + seconds
            try:
                with open(self.path, "rb") as file:
                    now = os.fstat(file.fileno())
                    if not self._continues(file, now):
                        self._forget()
                        self._inode = now.st_ino
                    self.complete = False
                    while self._read_part(file):
                        if time.monotonic() > until:
                            return
                    self.complete = True
            except OSError:
                if self.count:
                    self._forget()

    def _continues(self, file: Any, now: os.stat_result) -> bool:
        if now.st_ino != self._inode or now.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._mark))
        return bool(file.read(len(self._mark)) == self._mark)

    def _read_part(self, file: Any) -> bool:
        """Read the next whole lines; False if there are none."""
        file.seek(self._offset)
        content = file.read(PART_BYTES)
        end = content.rfind(b"\n") + 1
        while not end and len(content) % PART_BYTES == 0 and (more := file.read(PART_BYTES)):  # a very long line
            content += more
            end = content.rfind(b"\n") + 1
        if not end:
            return False  # the last line is still being written
        self._add(content[:end])
        self._offset += end
        self._mark = content[max(0, end - MARK_BYTES) : end]
        return True

    def _add(self, content: bytes) -> None:
        lines = content.split(b"\n")[:-1]
        rows = _parse(lines)
        start = 0
        keys: tuple[str, ...] = ()
        for at, row in enumerate(rows):
            if row is None:
                self.broken.append(self._lines + at + 1)
                self._add_rows(keys, rows[start:at])
                start, keys = at + 1, ()
            elif tuple(row) != keys:
                self._add_rows(keys, rows[start:at])
                start, keys = at, tuple(row)
        self._add_rows(keys, rows[start:])
        self._lines += len(lines)

    def _add_rows(self, keys: Sequence[str], rows: Sequence[Any]) -> None:
        """Add rows that have the same keys."""
        if not rows:
            return
        first, self.count = self.count, self.count + len(rows)
        found = dict(zip(keys, zip(*(row.values() for row in rows), strict=True), strict=True))
        for axis, known in self.axes.items():
            values = found.get(axis)
            known.extend(_numbers(values) if values else array("d", [_NAN]) * len(rows))
        for key, values in found.items():
            if key in AXES or (key not in self.columns and len(self.columns) >= MOST_COLUMNS):
                continue
            kinds = set(map(type, values))
            if not kinds & {int, float}:
                continue
            column = self.columns.setdefault(key, Column())
            numbers = _numbers(values)
            numbered = range(first, self.count)
            if not kinds <= {int, float}:  # strings and nulls are not points
                kept = [at for at, value in enumerate(values) if type(value) in (int, float)]
                numbers, column_rows = array("d", [numbers[at] for at in kept]), [first + at for at in kept]
            else:
                column_rows = numbered  # type: ignore[assignment]
            column.rows.extend(column_rows)
            column.values.extend(numbers)
            column.finite = column.finite and math.isfinite(sum(numbers))

    def latest(self) -> dict[str, float]:
        """Return the last finite value of every column, and of the axes."""
        with self._lock:
            found = {key: next(filter(math.isfinite, reversed(column.values)), _NAN) for key, column in self._all()}
            return {key: value for key, value in found.items() if not math.isnan(value)}

    def _all(self) -> list[tuple[str, Column]]:
        axes = [(name, Column(values=axis.places)) for name, axis in self.axes.items()]
        return [*axes, *self.columns.items()]

    def rows_of(self, *keys: str, most: int) -> list[dict[str, float]]:
        """Return the newest rows with these axes."""
        with self._lock:
            start = max(0, self.count - most)
            return [
                {key: place for key in keys if not math.isnan(place := self.axes[key].places[at])}
                for at in range(start, self.count)
            ]

    def points(self, axis: str, *, most: int, after: int = 0, low: float = -math.inf, high: float = math.inf) -> Any:
        """Return {key: points} over an axis: x and y, and if they were thinned, the mean of each pixel.

        most: points of a curve; a longer one is thinned to the smallest and the largest value of each pixel. after:
        start at this row number. low, high: only this part of the axis.
        """
        with self._lock:
            known: list[tuple[array[int], list[float]]] = []  # most columns have a value in the same rows
            found: dict[str, Any] = {}
            for key, column in self.columns.items():
                start = bisect_left(column.rows, after)
                rows = column.rows[start:]
                x = next((places for those, places in known if those == rows), None)
                if x is None:
                    x = list(map(self.axes[axis].places.__getitem__, rows))
                    known.append((rows, x))
                if x:
                    y = column.values[start:].tolist()
                    found[key] = _points(x, y, self.axes[axis], most, low, high, column.finite)
            return {key: points for key, points in found.items() if points["x"]}


def _parse(lines: Sequence[bytes]) -> list[dict[str, Any] | None]:
    """Return the rows of lines; all at once, which is faster, if every line is a valid row."""
    try:
        rows = from_json(b"[" + b",".join(lines) + b"]", cache_strings="keys")  # several times as fast as json
    except (ValueError, RecursionError):
        return [row_of(line) for line in lines]
    if len(rows) == len(lines) and all(type(row) is dict and type(row.get("step")) is int for row in rows):
        return rows
    return [row_of(line) for line in lines]


def _numbers(values: Sequence[Any]) -> array[float]:
    try:
        return array("d", values)  # fast; it accepts booleans, but callers do not mix them with numbers
    except (TypeError, OverflowError):
        return array("d", map(_number, values))


def _number(value: Any) -> float:
    try:
        return float(value) if type(value) in (int, float) else _NAN
    except OverflowError:
        return math.inf


def _points(
    x: list[float], y: list[float], axis: Axis, most: int, low: float, high: float, finite: bool
) -> dict[str, Any]:
    if not axis.whole:
        kept = [at for at, value in enumerate(x) if not math.isnan(value)]
        x, y = [x[at] for at in kept], [y[at] for at in kept]
    if not axis.rises:
        order = sorted(range(len(x)), key=x.__getitem__)
        x, y = [x[at] for at in order], [y[at] for at in order]
    if low > -math.inf or high < math.inf:
        # One more point on each side, so that the line continues to the edges.
        left, right = max(0, bisect_left(x, low) - 1), bisect_right(x, high) + 1
        x, y = x[left:right], y[left:right]
    if len(x) <= most:
        return {"x": x, "y": y}
    return _thin(x, y, most // 2, finite)


def _thin(x: list[float], y: list[float], pixels: int, finite: bool) -> dict[str, Any]:
    """Return the first and last point, and for each pixel of the axis the smallest and the largest one.

    If a pixel has values that are not finite, the first of them is also kept, as a gap. means: the mean of each pixel.
    """
    width = (x[-1] - x[0]) / pixels or 1.0
    kept = {0, len(x) - 1}
    mean_x, mean_y = [], []
    end = 0
    for pixel in range(pixels):
        start, end = end, len(x) if pixel == pixels - 1 else bisect_left(x, x[0] + (pixel + 1) * width, end)
        if start == end:
            continue
        part = y[start:end]
        if not finite:
            known = [value for value in part if math.isfinite(value)]
            if len(known) < len(part):
                kept.add(next(at for at in range(start, end) if not math.isfinite(y[at])))
            if not known:
                continue
            kept |= {start + part.index(min(known)), start + part.index(max(known))}
            part = known
        else:
            kept |= {start + part.index(min(part)), start + part.index(max(part))}
        mean_x.append(x[(start + end - 1) // 2])
        mean_y.append(sum(part) / len(part))
    order = sorted(kept)
    points = {"x": [x[at] for at in order], "y": [y[at] for at in order]}
    return {**points, "means": {"x": mean_x, "y": mean_y}, "of": len(x)}


MOST_FILES = 256
_open: OrderedDict[Path, Columns] = OrderedDict()
_lock = threading.Lock()


def columns_of(metrics: Path, seconds: float = MOST_SECONDS) -> Columns:
    """Return the columns of a metrics.jsonl, read as far as the time of one request allows."""
    path = metrics.absolute()
    with _lock:
        found = _open.setdefault(path, Columns(path))
        _open.move_to_end(path)
        while len(_open) > MOST_FILES:
            _open.popitem(last=False)
    found.read(seconds)
    return found
