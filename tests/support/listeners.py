"""Listeners for tests: override only the methods of the events a test is about."""

from typing import Any

from llm_lab import events

METHODS = {
    events.Notice: "notice",
    events.RunWarning: "warn",
    events.Progress: "progress",
    events.TrainingStarted: "begin",
    events.MetricsLogged: "log",
    events.Evaluating: "evaluating",
    events.SampleWritten: "sample",
    events.CheckpointSaved: "saved",
    events.ScoresReported: "scores",
    events.TrainingEnded: "end",
}


class Handlers:
    """Calls one method for each kind of event, with the event's fields; a warning is a notice by default."""

    def __call__(self, event: events.Event) -> None:
        method = getattr(self, METHODS[type(event)], None)
        if method is not None:
            method(**vars(event))

    def notice(self, text: str) -> Any:
        """Receive a line."""

    def warn(self, text: str) -> Any:
        """Receive a warning."""
        self.notice(text=text)
