"""metrics.jsonl as columns, for curves: read once, then only what was appended, and thinned without losing an outlier.

A file of 100,000 lines is read in parts, so that a page has its first curve at once. On resume a run replaces the file
by one without the steps that it repeats: a reader notices that it holds another file, and starts again.
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

# What curves are drawn over.
AXES = ("step", "train_tokens", "wall_seconds")
PART_BYTES = 1 << 18  # read and parsed at once; other requests wait for as long as that takes
MOST_SECONDS = 0.2  # of parsing in one request; the next request continues
MOST_COLUMNS = 400
MARK_BYTES = 64  # the end of what has been read, to recognize another file with the same inode
_NAN = math.nan


@dataclass
class Axis:
    """The place of every row on an axis, NaN where it has none.

    rises: whether no place is before the one above it. whole: whether every row has a place.
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
    """The values of a metric, and the numbers of the rows that have one."""

    rows: array[int] = field(default_factory=lambda: array("L"))
    values: array[float] = field(default_factory=lambda: array("d"))
    finite: bool = True


class Columns:
    """The columns of one metrics.jsonl. `read` reads on; everything else is about what has been read.

    generation: changes when the file is replaced. broken: the numbers of lines that can't be read.
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
        self.complete = True  # whether nothing is left to read
        self._lines = 0
        self._offset = 0
        self._inode: int | None = None
        self._mark = b""

    def read(self, seconds: float = MOST_SECONDS) -> None:
        """Read what was appended, for at most this long."""
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
        """Read the next whole lines; False where there are none."""
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
        """Add rows that all have the same keys."""
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
            if not kinds <= {int, float}:  # texts and nulls are not points
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
        """Return {key: points} over an axis: x and y, and where they were thinned, means of what each pixel holds.

        most: points of a curve; more are thinned to the smallest and the largest of each pixel. after: only rows from
        this number on. low, high: only this part of the axis.
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
    """Return the rows of lines. At once, which is faster, where all of them are rows as they are written."""
    try:
        rows = from_json(b"[" + b",".join(lines) + b"]", cache_strings="keys")  # several times as fast as json
    except (ValueError, RecursionError):
        return [row_of(line) for line in lines]
    if len(rows) == len(lines) and all(type(row) is dict and type(row.get("step")) is int for row in rows):
        return rows
    return [row_of(line) for line in lines]


def _numbers(values: Sequence[Any]) -> array[float]:
    try:
        return array("d", values)  # fast; takes booleans, which no caller has among numbers
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
        # One point more on each side: the line leads out of the picture.
        left, right = max(0, bisect_left(x, low) - 1), bisect_right(x, high) + 1
        x, y = x[left:right], y[left:right]
    if len(x) <= most:
        return {"x": x, "y": y}
    return _thin(x, y, most // 2, finite)


def _thin(x: list[float], y: list[float], pixels: int, finite: bool) -> dict[str, Any]:
    """Return the first and last point, and of each pixel of the axis the smallest and the largest one.

    Where a pixel holds values that are not finite, the first of them is kept too: a gap. means: the mean of each pixel.
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
    """Return the columns of a metrics.jsonl, read as far as one request has time for."""
    path = metrics.absolute()
    with _lock:
        found = _open.setdefault(path, Columns(path))
        _open.move_to_end(path)
        while len(_open) > MOST_FILES:
            _open.popitem(last=False)
    found.read(seconds)
    return found
