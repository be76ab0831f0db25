"""Design a model: parts chosen one by one, the numbers that follow always in sight."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import keys_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.recipe.pretrain import PRETRAIN, PretrainRecipe
from llm_lab.terminal.console import make_console
from llm_lab.terminal.prompts import Back, Option, choose, confirm, type_in
from llm_lab.terminal.screens import begin_screen, print_model_numbers

from .asking import Show, Step, ask_key, ask_keys, begin_question, run_steps, skip
from .draft import Draft
from .review import Action, require_no_problem, review

TITLE = "Design a model"
ACTIONS = (
    Action("save", "Save this design", require_no_problem),
    Action("menu", "Back to the menu, keeping the draft"),
)
BPE_ENTRIES = 4096
MODELS = Path("configs/models")
TOKENIZERS = {
    "bytes": "bytes: 257 entries, any text in any language, long sequences",
    "bpe": "a BPE trained on your own data",
    "named": "one on the Hub or in a folder: gpt2, Qwen/Qwen3-0.6B ...",
}
TOKENIZER_WHY = (
    "The tokenizer decides what one step of the model is. Bytes need no training and waste no parameters: best "
    "under a few million parameters. A BPE packs three to four letters into a token: faster reading, more memory "
    "for the vocabulary. An existing tokenizer makes models comparable and ready for others' tools."
)


def new_draft(machine: Machine) -> Draft:
    """Return the draft a design begins with: the dial at nano."""
    return Draft(
        {
            "stage": PRETRAIN.name,
            "name": "my-model",
            "device": machine.best_device,
            "data": [{"path": "builtin:stories"}],
        },
        machine,
    )


def design_paths(*, advanced: bool) -> list[str]:
    """Return the model's keys that are asked, in order; the advanced ones only on request."""
    keys = [key for key in keys_of(ModelParts, "model.") if key.question]
    return [key.path for key in keys if bool(key.meta.get("advanced")) == advanced]


def show_design(draft: Draft) -> None:
    """Draw the screen above a question of the design."""
    console = begin_screen(TITLE, draft.raw.get("name", ""))
    print_model_numbers(console, draft.look()[0])
    console.print()


def design(
    draft: Draft, *, write: Callable[[str, Mapping[str, Any]], Path], keep: Callable[[Draft], None]
) -> tuple[Path | None, Draft]:
    """Ask for the parts, review, and write the config. Returns (its folder, or None, and the draft).

    keep: takes the draft as it is, so that a Ctrl-C loses no answer. Raises Back at the first question.
    """
    written: list[Path] = []

    def finish(draft: Draft) -> Draft:
        draft, folder = _finish(draft, write=write, keep=keep)
        written[:] = [folder] if folder else []
        return draft

    parts = [_asker(path) for path in design_paths(advanced=False)]
    steps = [ask_name, ask_tokenizer_of_design, *parts, _ask_more, finish]
    draft = run_steps(steps, draft, first=draft.step, keep=keep)
    return (written[0] if written else None), draft


def _finish(
    draft: Draft, *, write: Callable[[str, Mapping[str, Any]], Path], keep: Callable[[Draft], None]
) -> tuple[Draft, Path | None]:
    """Review and write; no folder where the user goes to the menu."""
    askers = {"name": ask_name, "tokenizer": ask_tokenizer_of_design}
    while True:
        action, draft = review(
            draft,
            title=TITLE,
            actions=ACTIONS,
            show=show_design,
            only=("name", "tokenizer", "model."),
            asker_of=lambda path: askers.get(path.split(".")[0]),
        )
        keep(draft)
        if action == "menu":
            return draft, None
        name = draft.raw["name"]
        try:
            if (MODELS / name).exists() and not confirm(f"{MODELS / name} exists. Replace it?", default=False):
                draft = ask_name(draft)
                continue
        except Back:
            continue
        resolved, _ = draft.look()
        make_console().print("Writing; the first time takes a few seconds ...", style="dim")
        return draft, write(name, resolved.values)


def _asker(path: str) -> Step:
    def ask(draft: Draft) -> Draft:
        return ask_key(draft, path, show=show_design) if draft.applies(path) else skip(draft)

    return ask


def ask_name(draft: Draft) -> Draft:
    """Ask for the design's name."""
    begin_question(draft, f"It is written to {MODELS}/<name>/config.json.", show=show_design)
    pattern = next(m.pattern for m in PretrainRecipe.model_fields["name"].metadata if hasattr(m, "pattern"))
    allowed = "Letters, digits, '.', '_' and '-', beginning with a letter or digit."
    name = type_in(
        "A name for the model?",
        default=draft.raw.get("name") or "my-model",
        why="The name of its folder, and of what is made from it.",
        about=allowed,
        validate=lambda text: None if re.match(pattern, text.strip()) else f"{text.strip()} is no name for a folder.",
    )
    return draft.with_answer("name", name)


def ask_tokenizer(draft: Draft, *, show: Show) -> Draft:
    """Ask for the tokenizer: bytes, a BPE to train, or a named one."""
    now = draft.value("tokenizer")
    kind = "bpe" if isinstance(now, Mapping) else "bytes" if now in (None, "bytes") else "named"
    while True:
        begin_question(draft, "tokenizer: what the model reads and writes, one token at a time", show=show)
        options = [Option(key, text) for key, text in TOKENIZERS.items()]
        picked = choose("Which tokenizer?", options, default=kind, why=TOKENIZER_WHY)
        try:
            value = _ask_about_tokenizer(picked, now)
        except Back:
            continue
        draft = draft.with_notice("")
        # As with any key: Enter on what was derived leaves it derived.
        same = value == now and not draft.is_answered("tokenizer")
        return draft if same else draft.with_answer("tokenizer", value)


def _ask_about_tokenizer(kind: str, now: Any) -> Any:
    if kind == "bytes":
        return "bytes"
    if kind == "bpe":
        default = now["bpe"] if isinstance(now, Mapping) else BPE_ENTRIES
        text = type_in(
            "How many entries at most?",
            default=str(default),
            why="1,000 to 4,000 for a small text, 32,000 for much text. Each entry costs hidden_size parameters.",
            about="Allowed: a whole number from 257 to 1,000,000.",
            validate=_why_no_vocabulary,
        )
        return {"bpe": int(text.replace(",", ""))}
    return type_in(
        "Which one?",
        default=now if isinstance(now, str) and now != "bytes" else "gpt2",
        why="It is used as it is: its entries, its special tokens, its chat template.",
        about="A folder with tokenizer.json, a run of yours, or a name on the Hub such as gpt2.",
        validate=_why_no_tokenizer,
        paths=True,
    )


def _why_no_vocabulary(text: str) -> str | None:
    digits = text.strip().replace(",", "")
    good = digits.isdigit() and 257 <= int(digits) <= 1_000_000
    return None if good else f"{text!r} is not allowed: the 256 bytes and one sign are the least, 1,000,000 the most."


def _why_no_tokenizer(text: str) -> str | None:
    text = text.strip()
    if not text:
        return "A name or a folder is needed."
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    return f"There is no folder {text}." if looks_local and not Path(text).expanduser().exists() else None


def ask_tokenizer_of_design(draft: Draft) -> Draft:
    """Ask for the tokenizer below the design's numbers."""
    return ask_tokenizer(draft, show=show_design)


def _ask_more(draft: Draft) -> Draft:
    while True:
        begin_question(draft, "Biases, dropout, QK-norm, sliding window, head_dim and the like", show=show_design)
        more = choose(
            "Look at the finer settings too?",
            [Option(False, "no, the usual ones are fine"), Option(True, "yes, one by one")],
            default=False,
            why="They all have sensible values, can be changed in the review, and stand in the config.",
        )
        if not more:
            return draft
        with contextlib.suppress(Back):
            return ask_keys(draft, design_paths(advanced=True), show=show_design)
