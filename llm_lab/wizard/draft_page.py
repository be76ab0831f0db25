"""The page of a draft: its values as rows, each changed in place or by a flow of its own, until an action ends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from llm_lab.errors import LabError, UserError
from llm_lab.recipe.eval import EVAL
from llm_lab.recipe.fields import Key, flatten, groups_of
from llm_lab.recipe.files import format_value, parse_yaml
from llm_lab.recipe.scoring import describe_term
from llm_lab.recipe.validate import OFF, optional_groups, stage_schema
from llm_lab.runs.folder import find_model
from llm_lab.runs.recipe_paths import require_own_data

from .draft import Ask, Draft
from .home import MODELS
from .key_questions import answer_key, key_question
from .questions import Choice, Flow, Form, Line, Question, Row
from .walk import remember

OWN_DATA = "the validation data of its run"
AT_START = "derived at the start"  # by the run, from what is not known before
RUN = "run"  # the section of keys outside any group
WHY = (
    "yours: you chose it. default: built in. derived: computed from other values.\nA derived value shows its reason, "
    "and changes with the values it depends on."
)


@dataclass(frozen=True)
class Page:
    """The contents of a draft's page.

    essentials: {section: paths} shown at first. actions: the choices that end it, the usual one first. asker_of: the
    flow of a row that takes more than one question. questions: those of rows whose question differs from their key's.
    change: (draft, path, answer) gives the draft with an answer. only: prefix of the keys of the other rows.
    """

    key: str
    essentials: Callable[[Draft], Mapping[str, tuple[str, ...]]]
    actions: Callable[[Draft], tuple[Choice, ...]]
    asker_of: Callable[[str], Ask | None] = lambda path: None
    questions: Mapping[str, Callable[[Draft], Question]] = field(default_factory=dict)
    change: Callable[[Draft, str, Any], Draft] = answer_key
    only: tuple[str, ...] = ("",)
    recipe: Callable[[Draft], str] | None = None


def ask_page(start: Draft, draft: Draft, page: Page) -> Flow[tuple[str, Draft]]:
    """Show the page until an action ends it; return (action, draft).

    start: the draft that the page began with, also when the page is shown again after an action.
    """
    start, draft = replace(start, is_complete=True), replace(draft, is_complete=True)
    while True:
        answer = yield page_question(start, draft, page)
        draft = start.with_changes(answer["changes"])
        asker = page.asker_of(answer["action"])
        if asker is None:
            return answer["action"], draft
        draft = yield from asker(draft)


def page_question(start: Draft, draft: Draft, page: Page) -> Question:
    """Return the page of a draft. start: the draft it began with."""
    _, problems = draft.look()
    lines = [Line(str(problem), "bad") for problem in problems]
    rows = list(_rows(draft, page))
    paths_of_rows = {row.key for row in rows}
    essentials = [
        _row(draft, page, path, section)
        for section, paths in page.essentials(draft).items()
        for path in paths
        if path in paths_of_rows or page.asker_of(path) or path in page.questions
    ]

    def change(path: str, answer: Any) -> Question:
        return page_question(start, page.change(draft, path, answer), page)

    def fill(changes: Mapping[str, Any]) -> Question:
        return page_question(start, start.with_changes(changes), page)

    form = Form(
        tuple(essentials),
        tuple(rows),
        page.actions(draft),
        draft.changes_since(start),
        change,
        fill,
        sections=_sections(draft, rows),
        command=command_line(draft),
        recipe=(lambda: page.recipe(draft)) if page.recipe else None,  # type: ignore[misc]
    )
    screen = draft.screen
    return draft.ask(
        page.key,
        "Settings",
        kind="form",
        form=form,
        why=WHY,
        screen=replace(screen, lines=tuple(lines)),
    )


def _rows(draft: Draft, page: Page) -> Iterator[Row]:
    """Yield a row for each value of the draft that has an effect, group by group."""
    resolved, _ = draft.look()
    sections: dict[str, list[str]] = {}
    for path, _ in flatten(resolved.values if resolved else draft.raw):
        if path.startswith(page.only) and path != "stage":
            group, _, rest = path.partition(".")
            sections.setdefault(group if rest else RUN, []).append(path)
    for section, paths in sections.items():
        yield from (_row(draft, page, path, section) for path in paths)


def _row(draft: Draft, page: Page, path: str, section: str) -> Row:
    """Return the row of a key or a group."""
    origin, reason = draft.origin(path)
    if path == "data" and measures_own_data(draft):
        origin, reason = "derived", "no other data is named"
    key = draft.key(path)
    if key is not None and key.derived and draft.value(path) is None and origin == "default":
        origin = ""  # the value says it
    own = page.questions[path](draft).help if path in page.questions else ""

    def question() -> Question:
        return page.questions[path](draft) if path in page.questions else key_question(draft, path)

    return Row(
        path,
        _label(path, section),
        _value(draft, page, path),
        section,
        origin,
        reason,
        own or draft.help(path),
        None if page.asker_of(path) else question,
    )


def _label(path: str, section: str) -> str:
    """Return the label of a row under the heading of its section."""
    group, _, rest = path.partition(".")
    if section == group:
        return rest or path
    if section == RUN:
        return path
    return group if path.endswith(".name") else path.rpartition(".")[2]


def _value(draft: Draft, page: Page, path: str) -> str:
    """Return the value of a row as it is shown: in the words of its own question's choices, if it has one."""
    if path == "data" and measures_own_data(draft):
        return why_no_own_data(str(draft.value("model.checkpoint") or "")) or OWN_DATA
    question = page.questions[path](draft) if path in page.questions else None
    if question is not None and question.kind == "choice":
        for choice in question.choices:
            if choice.value == question.default:
                return " ".join(choice.text.split())
    return summary(draft, path)


@remember
def why_no_own_data(model: str) -> str:
    """Return what must still be chosen if a model's run held out no data to measure it on; "" if it did."""
    try:
        require_own_data(str(find_model(model)))
    except LabError:
        return "choose datasets here, or prompts or tasks below"
    return ""


def measures_own_data(draft: Draft) -> bool:
    """Whether a model is measured on the data that its own run held out, because nothing else is named."""
    groups = ("data", "score", "tasks")
    return draft.raw.get("stage") == EVAL.name and not any(draft.value(group) for group in groups)


def summary(draft: Draft, path: str) -> str:
    """Return a value, or a group, on one line."""
    value: Any = draft.run_name if path == "name" else draft.value(path)
    if value is None:
        key = draft.key(path)
        return AT_START if key is not None and key.derived else "none"
    if path == "data":
        return ", ".join(source["path"] for source in value)
    if path == "rewards" or path.endswith(".rewards"):
        return " + ".join(map(describe_term, value))
    if path in ("score", "forgetting"):
        return value.get("path") or "held-out prompts"
    if path == "model":
        return value.get("checkpoint") or value.get("config") or f"preset size {value.get('size', 'nano')}"
    if path == "tokenizer" and isinstance(value, Mapping):
        return f"a BPE of {value['bpe']:,} entries"
    if path == "lora":
        return "QLoRA" if value.get("load_in_4bit") else "LoRA"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (str(value) if isinstance(value, str) else format_value(value)).replace("\n", "⏎")


def _sections(draft: Draft, rows: list[Row]) -> dict[str, str]:
    fields = stage_schema(draft.raw).model_fields
    about = {name: Key(name, info).shown_help for name, info in fields.items() if groups_of(info)}
    return {row.section: about.get(row.section, "") for row in rows}


def _typed(value: Any) -> str:
    """Return a value as a user types it: text without quotes if it is then read as the same text."""
    text = value if isinstance(value, str) and value.strip() == value else ""
    try:
        return text if text and parse_yaml(text) == text else format_value(value)
    except UserError:
        return format_value(value)


def command_line(draft: Draft) -> str:
    """Return the command that is equivalent to a draft."""
    fields, groups = stage_schema(draft.raw).model_fields, optional_groups(draft.raw)
    words = [
        f"{path}={OFF if value is None else shlex.quote(_typed(value))}"
        for path, value in flatten(draft.raw)
        # Other keys are null anyway without an answer. An empty group switches on what is off by default.
        if path != "stage"
        and (value not in (None, {}) or (path in groups and (value is None or fields[path].default is None)))
    ]
    if not draft.is_design:
        return " ".join(["llm-lab", "new", draft.raw["stage"], *words])
    parts = [word.removeprefix("model.") for word in words if word.startswith(("model.", "tokenizer"))]
    return " ".join(["llm-lab", "design", *parts, "--out", f"{MODELS}/{draft.raw['name']}"])
