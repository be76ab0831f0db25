"""A pytest plugin that writes each failure to a file at once, so that none is lost if the tests are cut off.

python -m pytest -p benchmarks.gpu.pytest_failures  writes to the file named by $FAILURES (default failures.txt).
"""

from __future__ import annotations

import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    """Append the traceback of a failed test; with xdist, only the main process writes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ.get("FAILURES", "failures.txt"), "a", encoding="utf-8") as file:
            file.write(f"=== {report.nodeid} ({report.when})\n{report.longreprtext}\n\n")
