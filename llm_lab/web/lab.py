"""State shared by the pages of a server: its workers and the commands it started. All else is in the folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from .launches import Launches
from .workers import Worker, Workers

DATA_CALLS = "llm_lab.web.data_calls"


@dataclass
class Lab:
    """The state of a server, the only thing that is lost when the server ends."""

    workers: Workers = field(default_factory=Workers)
    launches: Launches = field(default_factory=Launches)

    @property
    def data(self) -> Worker:
        """The worker that reads data and checks recipes."""
        return self.workers.get("data", DATA_CALLS)


def lab_of(request: Request) -> Lab:
    """Return the state of the server that received a request."""
    lab: Any = request.app.state.lab
    assert isinstance(lab, Lab)
    return lab
