"""Design a model: its parts are chosen one by one, and the resulting numbers are always shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_lab.estimate.machine import find_machine
from llm_lab.recipe.fields import keys_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.recipe.pretrain import PRETRAIN

from .data_questions import TEXTS
from .draft import Draft
from .draft_page import Page, ask_page
from .home import MODELS
from .key_questions import is_value, key_question
from .questions import Answer, Choice, Flow, Leave, Line, Next, Question, Screen, WriteDesign, yes_no
from .review import draft_recipe, require_no_problem

TITLE = "Design a model"
SAVE, MENU = "save", "menu"
BPE_ENTRIES = 4096
TOKENIZERS = {
    "bytes": "bytes: 257 entries; any text in any language, but long sequences",
    "bpe": "a BPE trained on your own data",
    "named": "a tokenizer from the Hub or a folder: gpt2, Qwen/Qwen3-0.6B ...",
}
TOKENIZER_WHY = (
    "The tokenizer decides what one token is. Bytes need no training and no parameters for a large vocabulary: best "
    "for models below a few million parameters. A BPE packs three to four letters into a token: shorter sequences, "
    "more memory for the vocabulary. An existing tokenizer makes models comparable and compatible with other tools."
)


def new_design() -> Draft:
    """Return the draft that a design begins with: the preset size nano."""
    machine = find_machine()
    raw = {"stage": PRETRAIN.name, "name": "my-model", "device": machine.best_device, "data": [{"path": TEXTS}]}
    return Draft(raw, machine, TITLE, is_design=True, automatic={"name": (raw["name"], "")})


def design_paths(*, advanced: bool) -> tuple[str, ...]:
    """Return the keys of the model to ask for, in order: those shown at first, or the advanced ones."""
    keys = [key for key in keys_of(ModelParts, "model.") if key.question]
    return tuple(key.path for key in keys if bool(key.meta.get("advanced")) == advanced)


def design_actions(draft: Draft) -> tuple[Choice, ...]:
    """Return the actions that end the page of a design."""
    return (Choice(SAVE, "Save this design", require_no_problem(draft)), Choice(MENU, "Menu (keeps the draft)"))


def design_page() -> Page:
    """Return the page with all parts of a model."""
    return Page(
        "design",
        lambda draft: {"Model": ("name", "tokenizer"), "Parts": design_paths(advanced=False)},
        design_actions,
        asker_of=lambda path: ask_tokenizer if path.split(".")[0] == "tokenizer" else None,
        questions={"name": name_question},
        only=("name", "tokenizer", "model."),
        recipe=draft_recipe,
    )


def design() -> Flow[Next | None]:
    """Ask for the parts on one page, write the config, and offer to pretrain the design."""
    start, page = new_design(), design_page()
    draft = start
    while True:
        action, draft = yield from ask_page(start, draft, page)
        if action == MENU:
            yield Leave()
        if (yield from _save(draft)):
            return (yield from _next(draft))


def _save(draft: Draft) -> Flow[bool]:
    """Write the config; return whether it was written."""
    folder = MODELS / draft.raw["name"]
    if folder.exists():
        replaced = yield yes_no("replace", f"{folder} exists. Replace it?", default=False, screen=draft.screen)
        if not replaced:
            return False
    resolved, _ = draft.look()
    assert resolved is not None
    return (yield WriteDesign(draft.raw["name"], resolved.values))


def _next(draft: Draft) -> Flow[Next | None]:
    name = draft.raw["name"]
    folder = MODELS / name
    picked = yield Question(
        "design.next",
        "What next?",
        choices=(Choice(PRETRAIN.name, "Pretrain it"), Choice(MENU, "Back to the menu")),
        why="A design has no weights yet: pretraining creates them.",
        screen=Screen(TITLE, name, lines=(Line(f"Written: {folder}/config.json", "good"),)),
    )
    if picked == MENU:
        return None
    # A config does not name its tokenizer, and the design was made for this one.
    known = (Answer("model", "design"), Answer("model.config", str(folder)))
    return Next(PRETRAIN.name, {"name": name, "tokenizer": draft.value("tokenizer")}, known, can_return=True)


def name_question(draft: Draft) -> Question:
    """Return the question for the design's name."""
    return replace(
        key_question(draft, "name"),
        text="Name of the model?",
        help=f"name: the design is written to {MODELS}/<name>/config.json",
        why="Used for its folder, and suggested as the name of runs that train it.",
        allowed="Letters, digits, '.', '_' and '-', beginning with a letter or digit.",
    )


def ask_tokenizer(draft: Draft) -> Flow[Draft]:
    """Ask for the tokenizer: bytes, a BPE to train, or a named one."""
    now = draft.value("tokenizer")
    picked = yield draft.ask(
        "tokenizer",
        "Which tokenizer?",
        choices=tuple(Choice(key, text) for key, text in TOKENIZERS.items()),
        default="bpe" if isinstance(now, Mapping) else "bytes" if now in (None, "bytes") else "named",
        help="tokenizer: what the model reads and writes, one token at a time",
        why=TOKENIZER_WHY,
    )
    value: Any = picked
    if picked != "bytes":
        value = yield from (_ask_bpe if picked == "bpe" else _ask_named)(draft, now)
    # As with any key, Enter on a derived value leaves it derived.
    derived = is_value(draft, "tokenizer", value) and not draft.is_answered("tokenizer")
    return draft.with_notice("") if derived else draft.with_answer("tokenizer", value)


def _ask_bpe(draft: Draft, now: Any) -> Flow[dict[str, int]]:
    text = yield draft.ask(
        "tokenizer.bpe",
        "Maximum vocabulary size?",
        kind="text",
        default=str(now["bpe"] if isinstance(now, Mapping) else BPE_ENTRIES),
        help="tokenizer.bpe: entries of a BPE vocabulary trained on the run's data",
        why="1,000 to 4,000 for a small text, 32,000 for a large one. Each entry costs hidden_size parameters.",
        allowed="Allowed: a whole number from 257 to 1,000,000.",
        check=_why_no_vocabulary,
    )
    return {"bpe": int(text.strip().replace(",", ""))}


def _ask_named(draft: Draft, now: Any) -> Flow[str]:
    text = yield draft.ask(
        "tokenizer.name",
        "Which one?",
        kind="path",
        default=now if isinstance(now, str) and now != "bytes" else "gpt2",
        help="tokenizer: a folder or a name on the Hub",
        why="It is used unchanged: its entries, its special tokens, its chat template.",
        allowed="A folder with tokenizer.json, one of your runs, or a name on the Hub such as gpt2.",
        look_for="tokenizers",
        check=_why_no_tokenizer,
    )
    return text.strip()


def _why_no_vocabulary(text: str) -> str | None:
    digits = text.strip().replace(",", "")
    good = digits.isdigit() and 257 <= int(digits) <= 1_000_000
    why = "at least 257 (256 bytes and end-of-text), at most 1,000,000"
    return None if good else f'"{text}" is not allowed: {why}.'


def _why_no_tokenizer(text: str) -> str | None:
    text = text.strip()
    if not text:
        return "A name or a folder is required."
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    return f"{text} does not exist." if looks_local and not Path(text).expanduser().exists() else None
