"""The fields of a run's form, described from the recipe schema: one for each key, in its tab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from llm_lab.recipe.fields import Group, Key, groups_of, keys_of
from llm_lab.recipe.files import format_value
from llm_lab.recipe.registry import STAGES
from llm_lab.recipe.validate import find_key, optional_groups
from llm_lab.wizard.key_questions import allowed

TABS = ("model", "data", "training", "testing")
# The tab of a key, by the prefix of its path; the longest prefix counts, and all other keys are in training.
TAB_OF = {
    "model": "model",
    "tokenizer": "model",
    "chat_template": "model",
    "template_date": "model",
    "lora": "model",
    "data": "data",
    "when_exhausted": "data",
    "validation": "testing",
    "train.eval_steps": "testing",
    "samples": "testing",
    "score": "testing",
    "forgetting": "testing",
    "eval": "testing",
    "tasks": "testing",
}
# The tabs of keys that are not in a group.
LOOSE = {"model": "Chat template", "data": "Reading", "training": "Device and seed", "testing": "Testing"}
SECTIONS = {
    "model": "Model",
    "lora": "Adapter",
    "data": "Datasets",
    "optimizer": "Optimizer",
    "scheduler": "Learning-rate schedule",
    "train": "Length, batches, precision",
    "validation": "Validation data",
    "samples": "Samples",
    "score": "Score on held-out prompts",
    "forgetting": "Forgetting",
    "rewards": "Rewards",
    "tasks": "Evaluation tasks",
}
# The order of sections; those of a stage itself come first, and any others last.
ORDER = (
    "model",
    "lora",
    "data",
    "rewards",
    "train",
    "optimizer",
    "scheduler",
    "validation",
    "score",
    "samples",
    "forgetting",
)
# Sections for which the name of one key is sufficient.
TITLE_OF = {"tokenizer": "Tokenizer", "train.eval_steps": "How often it is evaluated"}
# Labels of keys that do not have a question.
LABELS = {"model.checkpoint": "Model"}
PLACED = ("name", "stage")  # placed elsewhere: next to the start button; in the page's address
TOKENIZER = "tokenizer"  # one value that can be given in three ways


def describe_form(stage: str) -> dict[str, Any]:
    """Return what a page needs to build the form of a stage: its tabs, with sections of fields."""
    facts = STAGES[stage]
    fields = fields_of(stage)
    tabs = []
    for tab in TABS:
        own = [field for field in fields if field["tab"] == tab]
        if own:
            title = tab.capitalize() if facts.trains or tab != "training" else "Settings"
            tabs.append({"name": tab, "title": title, "sections": _sections(stage, own)})
    return {
        "stage": stage,
        "title": facts.title,
        "about": facts.about,
        "examples": facts.examples,
        "from_scratch": facts.from_scratch,
        "trains": facts.trains,
        "tabs": tabs,
        "placed": [field for field in fields if field["tab"] is None],
    }


def _sections(stage: str, fields: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for field in fields:
        found.setdefault(field["section"], []).append(field)
    keys = {key.name: key for key in keys_of(STAGES[stage].recipe)}
    sections, optional = [], optional_groups({"stage": stage})
    for name, own in sorted(found.items(), key=lambda item: _rank(item[0])):
        key = keys.get(name)
        stage_name = STAGES[name].label if name in STAGES else name.capitalize()
        title = SECTIONS.get(name) or (f"{stage_name} settings" if name else LOOSE[own[0]["tab"]])
        title = TITLE_OF.get(own[0]["path"], title)
        sections.append(
            {
                "name": name,
                "title": title,
                "help": key.help.split("; null: ")[0] if key is not None and name in optional else "",
                "can_be_off": name in optional,  # it is switched on and off as a whole
                "lists": {path: _about_list(stage, path) for path in _lists_in(own)},
                "fields": own,
            }
        )
    return sections


def _lists_in(fields: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(field["path"].split(".N.")[0] for field in fields if ".N." in field["path"]))


def _about_list(stage: str, path: str) -> dict[str, Any]:
    key = find_key(STAGES[stage].recipe, path)
    assert key is not None, path
    return {"help": key.help, "derived": key.derived}


def _rank(section: str) -> int:
    return -1 if section in STAGES else ORDER.index(section) if section in ORDER else len(ORDER)


@cache
def fields_of(stage: str) -> tuple[dict[str, Any], ...]:
    """Return every field of a stage's form. A path with N is a field of each entry of a list.

    of: for a key that only one kind of its group has (an optimizer, a way to name a model), that kind.
    """
    fields = list(_fields(STAGES[stage].recipe, "", None))
    owners: dict[str, str] = {}
    for field in sorted(fields, key=lambda field: _rank(field["section"])):
        owners.setdefault(field["label"], field["path"])
    return tuple(_with_own_label(field, owners) for field in fields)


def _with_own_label(field: dict[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
    """Return a field with its section in the label if a key of another section has the same question."""
    label = field["label"]
    if ".N." in field["path"] or owners[label] == field["path"]:
        return field
    section = SECTIONS.get(field["section"], field["section"])
    return {**field, "label": f"{section}: {label[:1].lower()}{label[1:]}"}


def _fields(group: type[Group], prefix: str, of: str | None) -> Iterator[dict[str, Any]]:
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if not inner or key.name == TOKENIZER:
            yield _field(key, of)
            continue
        start = f"{key.path}.N." if key.kind == "list" else f"{key.path}."
        names_the_kind = f"{start}name" if len(inner) > 1 else None  # shared by all kinds
        for number, member in enumerate(inner):
            for field in _fields(member, start, kind_of(member) if len(inner) > 1 else of):
                if field["path"] != names_the_kind:
                    yield field
                elif number == 0:
                    yield {**field, "of": None}


def kind_of(member: type[Group]) -> str:
    """Return the name of a kind of a group: an optimizer's name; parts, config or checkpoint of a model."""
    if "name" in member.model_fields:
        return str(member.model_fields["name"].default)
    required = [name for name, info in member.model_fields.items() if info.is_required()]
    return required[0] if required else "parts"


def _field(key: Key, of: str | None) -> dict[str, Any]:
    section = key.path.split(".")[0] if "." in key.path else ""
    is_list = key.kind == "list" and not key.entries
    return {
        "path": key.path,
        "of": of,
        "tab": None if key.path in PLACED else tab_of(key.path),
        "section": section,
        "label": _label(key, section),
        "help": key.help,
        "why": key.why,
        "kind": TOKENIZER if key.path == TOKENIZER else "lines" if is_list else key.kind,
        "choices": [[as_text(choice), text] for choice, text in (key.choices or {}).items()],
        "candidates": key.meta.get("candidates"),
        "allowed": allowed(key),
        "derived": key.derived,
        "default": None if key.required or key.default is None else as_text(key.default),
        "names": key.names,
        "common": key.path == TOKENIZER or (bool(key.question) and not key.meta.get("advanced")),
    }


def tab_of(path: str) -> str:
    """Return the tab of a key."""
    steps = path.split(".")
    beginnings = (".".join(steps[:length]) for length in range(len(steps), 0, -1))
    return next((TAB_OF[beginning] for beginning in beginnings if beginning in TAB_OF), "training")


def _label(key: Key, section: str) -> str:
    if key.question or key.path in LABELS:
        return key.question or LABELS[key.path]
    inner = [step for step in key.path.split(".")[1 if section else 0 :] if step != "N"]
    words = " ".join(inner).replace("_", " ")
    if inner[:-1] == ["columns"] or key.path.startswith("score.columns."):
        words = f"{inner[-1]} column"
    # The entry of a list says what it belongs to.
    return (
        words.capitalize()
        if not section or ".N." in key.path
        else f"{SECTIONS.get(section, section.capitalize())}: {words}"
    )


def as_text(value: Any) -> str:
    """Return a value as its control shows it; a list of texts has one on each line."""
    if value is None:
        return ""
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) for item in value):
        plain = all(item.strip() and "\n" not in item for item in value) and not value[0].startswith("[")
        return "\n".join(value) if plain else format_value(value)
    return value if isinstance(value, str) else format_value(value)
