"""What a flow of questions yields and what it receives. Nothing here needs a terminal.

A flow is a generator: it yields questions and receives their answers, yields effects and receives their results, and
returns what runs next. A front end asks, executes, and goes back by running the flow again with one answer fewer
(walk.py).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from llm_lab.recipe.resolve import Resolved

T = TypeVar("T")
UNSET = "derive it"  # removes an answer, so that the key is derived or its default again
Flow = Generator[Any, Any, T]
Kind = Literal["choice", "several", "text", "path", "paths", "form"]


def accept(answer: Any) -> str | None:
    """Accept every answer."""
    return None


@dataclass(frozen=True)
class Choice:
    """One answer to choose. A command begins with a capital (Yes, start); a name does not.

    why_not: the reason it can't be chosen now. effect: what it means or leads to. why: its longer explanation, shown
    instead of the question's. cells: its columns under the question's heads, instead of the text. next_to: what a wide
    terminal shows next to the list.
    """

    value: Any  # text, a number, true or false, or a list of these
    text: str
    why_not: str | None = None
    effect: str = ""
    why: str = ""
    cells: tuple[str, ...] = ()
    next_to: NextTo | None = None


@dataclass(frozen=True)
class Line:
    """A line on the screen.

    style: good, warn, bad, dim, or "" for plain text. hang: the indent of its continuation lines.
    """

    text: str
    style: str = ""
    hang: int = 0


@dataclass(frozen=True)
class DesignNumbers:
    """The numbers of a model that is being designed; None while the answers contradict each other."""

    resolved: Resolved | None


@dataclass(frozen=True)
class RunNumbers:
    """The numbers of a run that is being set up; None while the answers contradict each other."""

    resolved: Resolved | None


@dataclass(frozen=True)
class Plan:
    """The plan of a run."""

    resolved: Resolved


@dataclass(frozen=True)
class RecipePlan:
    """The plan of a recipe file with overrides. resume: only for the remaining steps."""

    recipe: str
    overrides: tuple[str, ...] = ()
    resume: bool = False


@dataclass(frozen=True)
class CheckpointDetails:
    """What a checkpoint is and where it came from."""

    checkpoint: str


@dataclass(frozen=True)
class RunSummary:
    """A run in a few lines: what it is, its curve, its last sample."""

    path: str


@dataclass(frozen=True)
class FileHead:
    """The beginning of a text file, or what a folder holds."""

    path: str


Panel = DesignNumbers | RunNumbers | Plan | RecipePlan | CheckpointDetails
NextTo = RunSummary | FileHead  # what a wide terminal shows next to a list


@dataclass(frozen=True)
class Screen:
    """What is shown above a question. side: what wide terminals show next to its choices."""

    title: str = ""
    where: str = ""
    panel: Panel | None = None
    lines: tuple[Line, ...] = ()
    side: tuple[Line, ...] = ()


@dataclass(frozen=True)
class Row:
    """One line of a page.

    label, value: as shown. section: the heading it belongs to. origin: yours, default, derived, or ""; reason: why a
    derived value is what it is. question: makes the question that changes the value in place, whose default is the
    current value; None: the value has a flow of its own, which Enter starts.
    """

    key: str
    label: str
    value: str
    section: str = ""
    origin: str = ""
    reason: str = ""
    help: str = ""
    question: Callable[[], Question] | None = None

    @property
    def shown_origin(self) -> str:
        """The origin with its reason; "" if the value itself says it."""
        return f"{self.origin}: {self.reason}" if self.reason else self.origin


@dataclass(frozen=True)
class Form:
    """A page: rows that are changed in place, and actions that end it.

    Its answer is {"changes": {key: value}, "action": the name of an action, or the key of a row with a flow of its
    own}, and perhaps "at", the key of a row.

    essentials: the rows shown at first; rows: all of them, by section; sections: {section: its description}. actions:
    the first one is taken by finishing the page. changes: since the page began. change: (key of a row, answer to its
    question) gives the page after it; UNSET restores a value. fill: gives the page with these changes instead. command:
    the equivalent command line; recipe: makes the text of the recipe. at: where the pointer is at first, an action or
    the key of a row.
    """

    essentials: tuple[Row, ...]
    rows: tuple[Row, ...]
    actions: tuple[Choice, ...]
    changes: Mapping[str, Any]
    change: Callable[[str, Any], Question]
    fill: Callable[[Mapping[str, Any]], Question]
    sections: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    recipe: Callable[[], str] | None = None
    at: Any = None

    def answer(self, action: Any, at: Any = None) -> dict[str, Any]:
        """Return the answer that ends the page. at: the key of the row to point at when the page is shown again."""
        return {"changes": dict(self.changes), "action": action} | ({} if at is None else {"at": at})

    def row(self, key: str) -> Row | None:
        """Return the row with a key, or None."""
        return next((row for row in (*self.essentials, *self.rows) if row.key == key), None)

    def problem(self, action: Any) -> str | None:
        """Return why an action can't end the page, or None."""
        choice = next((choice for choice in self.actions if choice.value == action), None)
        if choice is not None:
            return choice.why_not
        row = self.row(str(action))
        return None if row and row.question is None else f"{action!r} is not an action here"


@dataclass(frozen=True)
class Question:
    """One question, with everything a front end needs to ask it.

    kind: one or several of the choices, a text, or one or several paths (or names: a path may be typed). key: what is
    answered, a recipe key or a name within the flow. choices: for paths, what is offered in addition to the files.
    look_for: for paths, which files are listed (a key of places.KINDS). help: one line above the question. why: the
    longer explanation. allowed: what may be typed. check: returns why an answer is refused, or None. wait: what takes
    time while the answer is checked. screen, notice: what is shown above it; below_output: keep the output of the last
    effect above it instead. form: the page, if kind is form. can_finish: whether the defaults of this and all further
    questions, up to the end of the page, can be taken at once. heads: the column heads of its choices.
    """

    key: str
    text: str
    kind: Kind = "choice"
    choices: tuple[Choice, ...] = ()
    default: Any = None
    help: str = ""
    why: str = ""
    allowed: str = ""
    check: Callable[[Any], str | None] = accept
    wait: str = ""
    screen: Screen = Screen()
    notice: str = ""
    below_output: bool = False
    look_for: str = ""
    form: Form | None = None
    can_finish: bool = False
    heads: tuple[str, ...] = ()

    @property
    def suggested(self) -> Any:
        """The answer that Enter gives: the default, the first choice that is possible, or a page's first action."""
        if self.form is not None:
            return self.form.answer(self.form.actions[0].value)
        if self.kind != "choice":
            return self.default
        possible = [choice.value for choice in self.choices if not choice.why_not]
        return next((value for value in possible if same(value, self.default)), possible[0] if possible else None)

    def problem(self, answer: Any) -> str | None:
        """Return why an answer can't be accepted, or None."""
        if self.form is not None:
            if not isinstance(answer, Mapping) or {*answer} - {"at"} != {"changes", "action"}:
                return f"{answer!r} is not the answer of a page"
            page = self.form.fill(answer["changes"]).form
            return page.problem(answer["action"]) if page else None
        if self.kind in ("choice", "several"):
            for value in answer if self.kind == "several" else [answer]:
                choice = next((choice for choice in self.choices if same(choice.value, value)), None)
                if choice is None:
                    return f"{value!r} is not a choice here"
                if choice.why_not:
                    return choice.why_not
        elif self.kind == "paths":
            if not isinstance(answer, list) or not all(isinstance(one, str) for one in answer):
                return f"{answer!r} is not a list of paths"
        elif not isinstance(answer, str):
            return f"{answer!r} is not text"
        return self.check(answer)


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal; true is not 1, and a tuple equals a list."""
    one, other = (list(value) if isinstance(value, tuple) else value for value in (one, other))
    return type(one) is type(other) and one == other


def yes_no(key: str, text: str, *, default: bool, yes: str = "Yes", no: str = "No", **more: Any) -> Question:
    """Return a yes-or-no question; the answer is a bool."""
    return Question(key, text, choices=(Choice(True, yes), Choice(False, no)), default=default, **more)


class Effect:
    """Something the front end executes once; the flow receives its result."""


@dataclass(frozen=True)
class Wait(Effect):
    """The flow needs a moment before its next item."""

    text: str


@dataclass(frozen=True)
class Pause(Effect):
    """Wait until the user has read what was printed."""


@dataclass(frozen=True)
class StartRun(Effect):
    """Run a recipe; the result is whether it could be started."""

    recipe: str | Mapping[str, Any]
    overrides: Sequence[str] = ()
    resume: bool = False


@dataclass(frozen=True)
class StartSweep(Effect):
    """Run a recipe for several values and seeds. words: as on the command line."""

    recipe: str
    words: tuple[str, ...]
    seeds: int
    preset: str | None = None


@dataclass(frozen=True)
class StartDuel(Effect):
    """Run two recipes, or two values of a key, with the same seeds. words: as on the command line."""

    recipe: str
    words: tuple[str, ...]
    seeds: int
    other: str | None = None


@dataclass(frozen=True)
class ResumeSweep(Effect):
    """Run the remaining runs of a sweep or a duel."""

    folder: str


@dataclass(frozen=True)
class OpenChat(Effect):
    """Chat with a model."""

    checkpoint: str


@dataclass(frozen=True)
class Compare(Effect):
    """Compare models, or all checkpoints of one run (steps), on the same prompts."""

    checkpoints: tuple[str, ...]
    prompts: tuple[str, ...] = ()
    steps: bool = False
    adapter_off: bool = False


@dataclass(frozen=True)
class LookInside(Effect):
    """Write the report of a look inside a model. text: None for the built-in text."""

    checkpoint: str
    text: str | None = None
    against: str | None = None
    steps: bool = False


@dataclass(frozen=True)
class ReplayLineage(Effect):
    """Retrain a checkpoint along its lineage. only_plan: write its recipe and show the plan."""

    checkpoint: str
    only_plan: bool = False


@dataclass(frozen=True)
class StartStudy(Effect):
    """Run an experiment with these options; the result is whether it could be started."""

    experiment: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunDoctor(Effect):
    """Show what this machine can do."""


@dataclass(frozen=True)
class ShowTokens(Effect):
    """Show the data of a run as tokens (X-ray)."""

    resolved: Resolved
    title: str


@dataclass(frozen=True)
class WriteDesign(Effect):
    """Write a design as configs/models/<name>/config.json."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class RenameRun(Effect):
    """Give a run another name, and update the runs that were made from it."""

    run: str
    name: str


@dataclass(frozen=True)
class DeleteRun(Effect):
    """Delete a run."""

    run: str


@dataclass(frozen=True)
class KeepCard(Effect):
    """Keep what only a person knows about a model, for its card and later ones."""

    answers: Mapping[str, str]
    checkpoint: str


@dataclass(frozen=True)
class WriteRecipe(Effect):
    """Write a recipe file."""

    path: Path
    text: str


@dataclass(frozen=True)
class BackTo:
    """Go back to the last question with this key; the flow does not continue after it."""

    key: str


@dataclass(frozen=True)
class Leave:
    """Leave the flow and keep its answers as a draft; the flow does not continue after it."""


@dataclass(frozen=True)
class Answer:
    """An answer or an effect's result.

    is_default: Enter was pressed; if the question is asked again, its default at that time is offered. is_open: the
    answer of a page that was left without an action; it is shown again with its changes.
    """

    key: str
    value: Any
    is_default: bool = False
    is_effect: bool = False
    is_open: bool = False


@dataclass(frozen=True)
class Next:
    """The next flow (a name that menu.flow_named knows), its arguments, and answers that are already known.

    can_return: whether going back from its first question, or its end, returns to the previous flow; otherwise it
    replaces that flow. title: what the home screen calls a kept draft of it.
    """

    flow: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    answers: tuple[Answer, ...] = ()
    can_return: bool = False
    title: str = ""
