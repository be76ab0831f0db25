"""The examples a stage after pretraining learns from: which set, what was recognised in it, which column is what."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from llm_lab.errors import LabError, UserError
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.scoring import Columns
from llm_lab.terminal.console import make_console, one_line
from llm_lab.terminal.prompts import Back, Option, choose, type_in

from .actions import Actions, FoundExamples
from .asking import Show, begin_question
from .draft import Draft
from .sources import ask_sets, is_hub_name

BUILTIN = "builtin:sums"
NOUNS = {"conversation": "conversations", "preference": "preferences", "prompt": "prompts"}
LOOKED_AT = "Found by looking at the first rows; else you say which column is what."
WHY = {
    "conversation": "Known: messages; conversations (ShareGPT); prompt and completion; instruction and output; "
    f"question and answer; plain text. {LOOKED_AT}",
    "preference": f"Known: prompt, chosen and rejected; chosen and rejected with the prompt in both. {LOOKED_AT}",
    "prompt": "Known: prompt, question or instruction, with or without the right answer beside it; messages. "
    f"{LOOKED_AT}",
}
# Form: the columns it has.
FORMS = {
    "conversation": {
        "a question and an answer": ("prompt", "completion"),
        "a list of messages": ("messages",),
        "plain text": ("text",),
    },
    "preference": {"a better and a worse answer": ("prompt", "chosen", "rejected")},
    "prompt": {"a question": ("prompt", "answer"), "a list of messages": ("messages", "answer")},
}
MAY_MISS = {"conversation": (), "preference": ("prompt",), "prompt": ("answer",)}
NO_COLUMN = ""  # no column is called this
COLUMN_LINES = 14  # above the question: what was found instead
SPECIMEN_LINES = 5


def ask_examples(draft: Draft, actions: Actions, *, show: Show) -> Draft:
    """Ask for the sets of examples; each is read, and what was recognised is shown. Raises Back."""
    kind = STAGES[draft.raw["stage"]].examples or ""

    def ask(draft: Draft, default: Mapping[str, Any], number: int) -> tuple[dict[str, Any], str]:
        return _ask_set(draft, default, actions, kind, number=number, show=show)

    return ask_sets(draft, ask, first={"path": BUILTIN}, what=NOUNS[kind], show=show)


def _ask_set(
    draft: Draft, default: Mapping[str, Any], actions: Actions, kind: str, *, number: int, show: Show
) -> tuple[dict[str, Any], str]:
    trouble, path = "", str(default["path"])
    key = draft.key("data.0.path")
    while True:
        begin_question(draft.with_notice(trouble or draft.notice), f"data.{number}.path: {key.help}", show=show)
        path = type_in(
            f"Which {NOUNS[kind]}?",
            default=path,
            why=WHY[kind],
            about=f"{BUILTIN} is made on the spot: sums in words. Tab completes paths.",
            validate=lambda text: None if text.strip() else "A path or a name is needed.",
            paths=True,
        )
        kept = {key: value for key, value in default.items() if path == default["path"]} | {"path": path}
        try:
            source = kept | (ask_hub_part(kept, "train") if is_hub_name(path) else {})
            return recognise_set(draft, source, actions, kind, show=show)
        except LabError as error:
            trouble = str(error)
        except Back:
            trouble = ""


def ask_hub_part(source: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Ask for the subset and the split of a set on the Hub. Raises Back."""
    subset = type_in("Its subset (empty: none)?", default=str(source.get("subset") or ""), why=HUB_WHY)
    split = type_in("Its split?", default=str(source.get("split") or split), why=HUB_WHY)
    return ({"subset": subset} if subset else {}) | {"split": split or "train"}


HUB_WHY = "Both stand on the dataset's page on the Hub. Most sets have no subsets, and a split called train."


def recognise_set(
    draft: Draft, source: dict[str, Any], actions: Actions, kind: str, *, show: Show
) -> tuple[dict[str, Any], str]:
    """Return a set and what is found in it; where its columns are not clear, ask what they hold.

    UserError where it can't be read; raises Back.
    """
    make_console().print("Reading ...", style="dim")
    try:
        return source, in_words(actions.describe_examples(source, kind))
    except UserError as error:
        if not any(".columns" in problem.key for problem in error.problems):
            raise
        trouble = str(error)
    while True:
        begin_question(draft.with_notice(trouble), f"{source['path']}: which column is what", show=show)
        columns = _ask_columns(actions.columns(source, kind), kind)
        try:
            named = {**source, "columns": columns}
            return named, in_words(actions.describe_examples(named, kind))
        except UserError as error:
            trouble = str(error)


def _ask_columns(columns: Sequence[str], kind: str) -> dict[str, str]:
    names = list(FORMS[kind])
    form = names[0]
    while True:
        if len(names) > 1:
            options = [Option(name, name) for name in names]
            form = choose("What is a row?", options, default=form, why=WHY[kind], above=COLUMN_LINES)
        picked: list[str] = []
        fields = FORMS[kind][form]
        while len(picked) < len(fields):
            field = fields[len(picked)]
            found = dict(zip(fields, picked, strict=False))
            options = [Option(name, one_line(name), _taken(name, found)) for name in columns]
            options += [Option(NO_COLUMN, "none of them")] if field in MAY_MISS[kind] else []
            about = Columns.model_fields[field].description.removeprefix("column with ")
            try:
                picked.append(choose(f"Which column holds {about}?", options, why=WHY[kind], above=COLUMN_LINES))
            except Back:
                if not picked and len(names) == 1:
                    raise
                if not picked:
                    break
                picked.pop()
        else:
            return {field: name for field, name in zip(fields, picked, strict=True) if name != NO_COLUMN}


def _taken(name: str, found: Mapping[str, str]) -> str | None:
    return next((f"it is the {field}" for field, column in found.items() if column == name), None)


def in_words(found: FoundExamples) -> str:
    """Return what was recognised, with one example below it, on a few short lines."""
    lines = [one_line(line)[:78] for line in found.specimen.splitlines() if line.strip()]
    more = ["..."] if len(lines) > SPECIMEN_LINES else []
    return "\n".join([one_line(found.description), *(f"  {line}" for line in lines[:SPECIMEN_LINES]), *more])


def ask_score(draft: Draft, actions: Actions, *, show: Show) -> Draft:
    """Ask whether held-out prompts are answered and scored at every evaluation, and where they come from."""
    stage, now = draft.raw["stage"], draft.value("score")
    held_out = None if STAGES[stage].has_prompts else "the data contains no prompts to score on"
    options = [
        Option("held-out", "yes, on prompts kept from the data", held_out),
        Option("named", "yes, on other prompts"),
        Option("none", "no"),
    ]
    kind = "none" if now is None else "named" if now.get("path") else "held-out"
    begin_question(draft, "score: held-out prompts that are answered and scored at every evaluation", show=show)
    while True:
        picked = choose("Score its answers while it trains?", options, default=kind, why=SCORE_WHY)
        with contextlib.suppress(Back):
            if picked == "none":
                return draft.with_none("score") if draft.value("score") is not None else draft
            if picked == "named":
                return ask_score_path(draft, actions, show=show)
            kept = {k: v for k, v in (draft.raw.get("score") or {}).items() if k in ("prompts", "rewards")}
            return draft.with_answer("score", kept or {"prompts": draft.value("score.prompts") or 100})


def is_score_source(path: str) -> bool:
    """Tell whether a key says where the prompts to score on come from, or whether there are any."""
    group, _, key = path.partition(".")
    return group == "score" and key.split(".")[0] in ("", "path", "subset", "split", "columns")


SCORE_WHY = (
    "The loss and the reward say how well it fits what it is trained on. Held-out prompts say whether it got better: "
    "where the data know the answers, the share that is right. At every evaluation each prompt is answered twice."
)


def ask_score_path(draft: Draft, actions: Actions, *, show: Show) -> Draft:
    """Ask where the prompts that are scored come from. Raises Back."""
    now, trouble = dict(draft.raw.get("score") or {}), ""
    path = str(now.get("path") or BUILTIN)
    while True:
        begin_question(draft.with_notice(trouble), f"score.path: {draft_help('path')}", show=show)
        path = type_in(
            "Which prompts?", default=path, why=SCORE_WHY, about="Never those it is trained on. Tab completes paths.",
            validate=lambda text: None if text.strip() else "A path or a name is needed.", paths=True,
        )  # fmt: skip
        # A local file has no splits.
        part = (
            ask_hub_part(now, "test")
            if is_hub_name(path)
            else {}
            if path.startswith("builtin:")
            else {"split": "train"}
        )
        try:
            source, _ = recognise_set(draft, {"split": "test"} | part | {"path": path}, actions, "prompt", show=show)
        except LabError as error:
            trouble = str(error)
            continue
        kept = {key: now[key] for key in ("prompts", "max_completion_length", "rewards") if key in now}
        return draft.with_answer("score", kept | {k: v for k, v in source.items() if (k, v) != ("split", "test")})


def draft_help(key: str) -> str:
    """Return the help of a key of the score."""
    from llm_lab.recipe.scoring import Score

    return Score.model_fields[key].description or ""
