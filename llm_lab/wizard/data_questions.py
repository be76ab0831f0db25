"""Questions about data: texts or examples, what was recognized in them, their columns, how datasets are mixed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from llm_lab.errors import LabError, Problem, UserError
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.scoring import Columns, Score

from .draft import Draft
from .places import is_hub_name, offered
from .questions import Choice, Flow, Wait, yes_no
from .walk import remember

Source = dict[str, Any]
TEXTS = "builtin:stories"
EXAMPLES = "builtin:word-problems"
READING = "Reading ..."
TEXT_WHY = (
    "A .txt or .md file is one document; in .jsonl, .csv and .parquet each row is one. Tab completes paths. "
    "A Hub name is owner/name; its subset and text column are asked next."
)
STREAM_WHY = (
    "A downloaded dataset is shuffled and kept on disk as text and as tokens. A streamed one is read while the model "
    "trains, in its original order, and is not stored: for datasets that don't fit on the disk."
)
HUB_WHY = (
    "The dataset's page on the Hub shows its subsets, splits and columns. Most datasets have no subsets, and a split "
    "called train."
)
MIX_WHY = "Several datasets of {} are mixed by weights that you set next. Part of each is held out for validation."
SETS_WHY = "Each dataset is measured separately."
NOUNS = {"text": "text", "conversation": "conversations", "preference": "preference pairs", "prompt": "prompts"}
LOOKED_AT = "The format is recognized from the first rows; if it isn't, you choose the columns."
WHY = {
    "text": TEXT_WHY,
    "conversation": "Supported: messages; conversations (ShareGPT); prompt and completion; instruction and output; "
    f"question and answer; plain text. {LOOKED_AT}",
    "preference": f"Supported: prompt, chosen and rejected; chosen and rejected with the prompt in both. {LOOKED_AT}",
    "prompt": f"Supported: prompt, question or instruction, with or without a reference answer; messages. {LOOKED_AT}",
}
# What a row can be, and its columns.
FORMS: dict[str, dict[str, tuple[str, ...]]] = {
    "conversation": {
        "a question and an answer": ("prompt", "completion"),
        "a list of messages": ("messages",),
        "plain text": ("text",),
    },
    "preference": {"a better and a worse answer": ("prompt", "chosen", "rejected")},
    "prompt": {"a question": ("prompt", "answer"), "a list of messages": ("messages", "answer")},
}
OPTIONAL: dict[str, tuple[str, ...]] = {"conversation": (), "preference": ("prompt",), "prompt": ("answer",)}
NO_COLUMN = ""  # no column is called this
EXAMPLE_LINES = 5
UNCHECKED = "needs a reward model (no rule can check the answers)"
NOT_CHECKABLE = "No rule can check these answers: score them with a reward model."
SCORE_WHY = (
    "The loss and the reward show how well the model fits its training data. Outputs for held-out prompts show "
    "whether it got better; with reference answers, the share of right outputs is measured. Each prompt gets a "
    "greedy and a sampled output."
)
FORGETTING_WHY = (
    "A fine-tune can forget what the model knew, without any sign in its own validation loss. Name text that it "
    "should still know and that is not trained on: its bits per byte are measured at every evaluation, and the run "
    "warns if they rise by more than forgetting.threshold."
)


@dataclass(frozen=True)
class Found:
    """What was recognized in a dataset: a description, and one example as text."""

    description: str
    example: str = ""

    def text(self) -> str:
        """Return it on a few short lines."""
        lines = [
            textwrap.shorten(line, 76, placeholder=" …", break_on_hyphens=False)
            for line in self.example.splitlines()
            if line.strip()
        ]
        more = ["..."] if len(lines) > EXAMPLE_LINES else []
        return "\n".join([self.description, *(f"  {line}" for line in lines[:EXAMPLE_LINES]), *more])


@remember
def look_at_name(path: str) -> str:
    """Look up a dataset on the Hub or in its cache; return what was not checked. UserError if it does not exist."""
    from llm_lab.data.hub_datasets import require_on_hub

    return require_on_hub(path, key="data.0") or ""


@remember
def look_at_texts(source: Mapping[str, Any]) -> Found:
    """Look at a set of texts; for one on the Hub, only at its page. UserError if it can't be read."""
    from llm_lab.data.paths import is_on_hub
    from llm_lab.data.sources import look_at_source, open_source
    from llm_lab.data.streams import open_stream

    keys = {key: source[key] for key in ("subset", "split", "text_column") if source.get(key)}
    streaming = bool(source.get("streaming"))
    if is_on_hub(source["path"]) and (remark := look_at_name(source["path"])):
        return Found(remark)
    look_at_source(source["path"], streaming=streaming, **keys)
    return Found((open_stream if streaming else open_source)(source["path"], **keys).describe())


@remember
def look_at_examples(source: Mapping[str, Any], kind: str) -> Found:
    """Look at a set of examples; for one on the Hub, only at its page. UserError if it can't be read."""
    from llm_lab.data import examples
    from llm_lab.data.paths import is_on_hub

    keys = {key: source[key] for key in ("subset", "split", "columns") if source.get(key)}
    if is_on_hub(source["path"]) and (remark := look_at_name(source["path"])):
        return Found(remark)
    examples.look_at_examples(source["path"], kind=kind, **keys)
    found = examples.open_examples(source["path"], kind=kind, **keys)
    return Found(found.description, found.examples[0].describe())


@remember
def columns_of(source: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Return the columns of a set of examples."""
    from llm_lab.data.examples import columns_of_set

    keys = {key: source[key] for key in ("subset", "split") if source.get(key)}
    return tuple(columns_of_set(source["path"], kind=kind, **keys))


def ask_data(draft: Draft, kind: str, *, mixed: bool = True) -> Flow[Draft]:
    """Ask for the sets one by one, show what was found in each, and ask for the weights of a mix.

    kind: text, conversation, preference or prompt. mixed: whether the sets are mixed, or each is measured on its own.
    """
    earlier = list(draft.raw.get("data") or [])
    first = {"path": TEXTS if kind == "text" else EXAMPLES}
    sets: list[Source] = []
    more = True
    while more:
        number = len(sets)
        default = earlier[number] if number < len(earlier) else {"path": ""} if first in sets else first
        source, found = yield from _ask_set(draft, sets, default, kind, mixed=mixed)
        sets.append(source)
        draft = draft.with_answer("data", list(sets))
        more = yield yes_no(
            f"data.{number + 1}",
            f"Add another dataset of {NOUNS[kind]}?",
            default=len(sets) < len(earlier),
            no="No, continue",
            help=f"{source['path']}: {found.text()}",
            why=MIX_WHY.format(NOUNS[kind]) if mixed else SETS_WHY,
            screen=draft.screen,
        )
    if mixed and len(sets) > 1:
        for number in range(len(sets)):
            draft = yield from _ask_weight(draft, number)
    return draft


def _ask_set(
    draft: Draft, before: list[Source], default: Mapping[str, Any], kind: str, *, mixed: bool
) -> Flow[tuple[Source, Found]]:
    """Ask for one set; return it and what was found in it."""
    number = len(before)
    key = draft.key("data.0.path")

    def source_of(path: str) -> Source:
        return {key: value for key, value in default.items() if path == default["path"]} | {"path": path}

    def check(text: str) -> str | None:
        path = text.strip()
        if not path:
            return "A path or a name is required."
        problems = draft.with_answer("data", [*before, source_of(path)]).look()[1]
        wrong = [p for p in problems if isinstance(p, Problem) and p.key.startswith(f"data.{number}.")]
        return str(wrong[0]) if wrong else _why_not_named(source_of(path), kind)

    path = (
        yield draft.ask(
            f"data.{number}.path",
            f"Which dataset of {NOUNS[kind]}?",
            kind="path",
            default=str(default["path"]),
            help=f"data.{number}.path: {key.help if key else 'where the data is'}",
            why=WHY[kind],
            choices=_in_training(kind),
            look_for="texts" if kind == "text" else "examples",
            check=check,
            wait=READING,
        )
    ).strip()
    source = source_of(path)
    if is_hub_name(path):
        source |= yield from _ask_hub_keys(draft, source, kind, streams=mixed and kind == "text")
    return (yield from recognize(draft, source, kind))


def _in_training(kind: str) -> tuple[Choice, ...]:
    """Return the data that is offered for training; for prompts, those whose answers a rule can check come first."""
    from llm_lab.data.builtin import BUILTIN

    if kind != "prompt":
        return offered(kind)
    checkable = {f"builtin:{name}" for name in BUILTIN}
    marked = [
        replace(one, text=f"{UNCHECKED}: {one.text.partition(', for ')[0]}", effect=NOT_CHECKABLE)
        if str(one.value).startswith("builtin:") and one.value not in checkable
        else one
        for one in offered(kind)
    ]
    return tuple(sorted(marked, key=lambda one: one.value not in checkable))


def _why_not(source: Source, kind: str) -> str | None:
    """Return why a set can't be read, or None. Unrecognized columns are not a reason: they are asked for next."""
    try:
        _look(source, kind)
    except LabError as error:
        return None if can_ask_columns(source, kind, error) else str(error)
    return None


def _why_not_named(source: Source, kind: str) -> str | None:
    """Return why a path or a name can't be used, or None. What else a name on the Hub needs is asked for next."""
    if not is_hub_name(source["path"]):
        return _why_not(source, kind)
    try:
        look_at_name(source["path"])
    except LabError as error:
        return str(error)
    return None


def _look(source: Source, kind: str) -> Found:
    return look_at_texts(source) if kind == "text" else look_at_examples(source, kind)


def _is_about_columns(error: LabError) -> bool:
    keys = [problem.key for problem in error.problems if isinstance(problem, Problem)]
    return any(".columns" in key for key in keys) or "text_column" in str(error)


def can_ask_columns(source: Source, kind: str, error: LabError) -> bool:
    """Return whether a set could be read once its columns are named: none is named yet, and it has enough of them."""
    if not _is_about_columns(error) or source.get("columns") or source.get("text_column"):
        return False
    if kind == "text":
        return True
    required = [sum(field not in OPTIONAL[kind] for field in fields) for fields in FORMS[kind].values()]
    return len(columns_of(source, kind)) >= min(required)


def _ask_hub_keys(draft: Draft, source: Source, kind: str, *, streams: bool, split: str = "train") -> Flow[Source]:
    """Ask for the subset of a set on the Hub, and its text column or its split."""
    found: Source = {}

    def ask(name: str, text: str, default: str = "", *, last: bool = False) -> Flow[str]:
        def check(answer: str) -> str | None:
            return _why_not({**source, **found, name: answer.strip() or default}, kind) if last else None

        now = str(source.get(name) or default)
        answer = yield draft.ask(f"data.{name}", text, kind="text", default=now, why=HUB_WHY, check=check,
                                 wait=READING if last else "", help=f"{source['path']} on the Hub")  # fmt: skip
        return answer.strip()

    found |= _given("subset", (yield from ask("subset", "Subset (empty: none)?")))
    if kind == "text":
        last = not streams
        found |= _given("text_column", (yield from ask("text_column", "Text column (empty: detect it)?")))
        if not last:
            found |= yield from _ask_streaming(draft, source, found)
            return found
    return found | {"split": (yield from ask("split", "Split?", split, last=True)) or split}


def _given(key: str, value: str) -> Source:
    return {key: value} if value else {}


def _ask_streaming(draft: Draft, source: Source, found: Source) -> Flow[Source]:
    before = bool(source.get("streaming"))
    stream = yield yes_no(
        "data.streaming",
        "Stream it?",
        default=before,
        no="No, download it",
        help=f"{source['path']} on the Hub",
        why=STREAM_WHY,
        screen=draft.screen,
        check=lambda stream: _why_not({**source, **found} | ({"streaming": stream} if stream else {}), "text"),
        wait=READING,
    )
    return {"streaming": stream} if stream or before else {}


def recognize(draft: Draft, source: Source, kind: str) -> Flow[tuple[Source, Found]]:
    """Return a set and what is found in it; if its columns are not recognized, ask for them."""
    yield Wait(READING)
    try:
        return source, _look(source, kind)
    except UserError as error:
        if not can_ask_columns(source, kind, error):
            raise
        trouble = str(error)
    if kind == "text":
        column = yield draft.ask(
            "data.text_column",
            "Which column has the text?",
            kind="text",
            default="",
            notice=trouble,
            check=lambda text: (
                _why_not({**source, "text_column": text.strip()}, kind) if text.strip() else "A column is required."
            ),
        )
        source = {**source, "text_column": column.strip()}
    else:
        source = {**source, "columns": (yield from _ask_columns(draft, source, kind, trouble))}
    return source, _look(source, kind)


def _ask_columns(draft: Draft, source: Source, kind: str, trouble: str) -> Flow[dict[str, str]]:
    columns, forms = columns_of(source, kind), FORMS[kind]
    help_line = f"{source['path']}: which column is what"
    form = next(iter(forms))
    if len(forms) > 1:
        choices = tuple(Choice(name, name) for name in forms)
        form = yield draft.ask("columns", "What does a row contain?", choices=choices, help=help_line, why=WHY[kind],
                               notice=trouble)  # fmt: skip
    picked: dict[str, str] = {}
    fields = forms[form]
    for field in fields:
        taken = {column: f"already the {name}" for name, column in picked.items()}
        choices = tuple(Choice(name, name, taken.get(name)) for name in columns)
        choices += (Choice(NO_COLUMN, "none of these"),) if field in OPTIONAL[kind] else ()
        about = (Columns.model_fields[field].description or field).removeprefix("column with ")
        last = field == fields[-1]
        picked[field] = yield draft.ask(
            f"columns.{field}",
            f"Which column has {about}?",
            choices=choices,
            help=help_line,
            why=WHY[kind],
            notice=trouble,
            check=partial(_why_not_column, source, kind, picked, field) if last else lambda column: None,
            wait=READING if last else "",
        )
    return {field: name for field, name in picked.items() if name != NO_COLUMN}


def _why_not_column(source: Source, kind: str, picked: Mapping[str, str], field: str, column: str) -> str | None:
    columns = {name: taken for name, taken in {**picked, field: column}.items() if taken != NO_COLUMN}
    return _why_not({**source, "columns": columns}, kind)


def _ask_weight(draft: Draft, number: int) -> Flow[Draft]:
    source = draft.raw["data"][number]
    text = yield draft.ask(
        f"data.{number}.weight",
        f"Weight of {source['path']}?",
        kind="text",
        default=str(source.get("weight", 1.0)),
        help=f"data.{number}.weight: share of the mix, relative to the others",
        why="Weights are relative: with 2.0 and 1.0, two thirds are read from the first and one third from the second.",
        allowed="Allowed: a number above 0.",
        check=lambda text: None if _is_positive(text) else f'"{text}" is not a number above 0.',
    )
    return draft.with_answer(f"data.{number}.weight", float(text))


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def ask_score(draft: Draft) -> Flow[Draft]:
    """Ask whether held-out prompts are answered and scored at every evaluation, and where they come from."""
    now = draft.value("score")
    why_not = None if STAGES[draft.raw["stage"]].has_prompts else "the data has no prompts to hold out"
    choices = (
        Choice("held-out", "Yes, prompts held out from this data", why_not),
        Choice("named", "Yes, other prompts"),
        Choice("none", "No"),
    )
    picked = yield draft.ask(
        "score",
        "Score outputs for held-out prompts during training?",
        choices=choices,
        default="none" if now is None else "named" if now.get("path") else "held-out",
        help="score: outputs for held-out prompts are scored at every evaluation",
        why=SCORE_WHY,
    )
    if picked == "none":
        return draft.with_none("score") if now is not None else draft.with_notice("")
    if picked == "named":
        return (yield from ask_score_path(draft))
    kept = {k: v for k, v in (draft.raw.get("score") or {}).items() if k in ("prompts", "rewards")}
    return draft.with_answer("score", kept or {"prompts": draft.value("score.prompts") or 100})


def ask_forgetting(draft: Draft) -> Flow[Draft]:
    """Ask for the general text on which forgetting is measured; an empty answer switches this off."""
    now = dict(draft.raw.get("forgetting") or {})

    def check(text: str) -> str | None:
        path = text.strip()
        return _why_not_named({"path": path}, "text") if path else None

    path = (
        yield replace(
            draft.ask("forgetting.path", "General text to measure (empty: none)?", kind="path"),
            default=str(now.get("path") or ""),
            help="forgetting: general text that is measured at every evaluation, to see what the model forgets",
            why=FORGETTING_WHY,
            choices=(Choice("", "none", effect="Forgetting is not measured."), *offered("text")),
            look_for="texts",
            check=check,
            wait=READING,
        )
    ).strip()
    return draft.with_answer("forgetting", now | {"path": path} if path else None)


def is_score_source(path: str) -> bool:
    """Whether a key says which prompts are scored, or that there are any."""
    group, _, key = path.partition(".")
    return group == "score" and key.split(".")[0] in ("", "path", "subset", "split", "columns")


def ask_score_path(draft: Draft) -> Flow[Draft]:
    """Ask where the prompts to be scored come from."""
    now: Source = dict(draft.raw.get("score") or {})

    def source_of(path: str) -> Source:
        # A local file has no splits.
        return {"path": path, "split": "test" if path.startswith("builtin:") else "train"}

    def check(text: str) -> str | None:
        path = text.strip()
        if not path:
            return "A path or a name is required."
        return _why_not_named(source_of(path), "prompt")

    path = (
        yield replace(
            draft.ask("score.path", "Which prompts?", kind="path", default=str(now.get("path") or EXAMPLES)),
            help=f"score.path: {Score.model_fields['path'].description}",
            why=SCORE_WHY,
            allowed="Use prompts that are not in the training data.",
            choices=offered("prompt"),
            look_for="examples",
            check=check,
            wait=READING,
        )
    ).strip()
    source = source_of(path)
    if is_hub_name(path):
        part = {key: now[key] for key in ("subset", "split") if key in now}
        source = {"path": path}
        source |= yield from _ask_hub_keys(draft, source | part, "prompt", streams=False, split="test")
    source, _ = yield from recognize(draft, source, "prompt")
    kept = {key: now[key] for key in ("prompts", "max_completion_length", "rewards") if key in now}
    return draft.with_answer("score", kept | {k: v for k, v in source.items() if (k, v) != ("split", "test")})
