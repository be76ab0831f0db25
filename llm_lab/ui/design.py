"""Design a model: parts chosen one by one, the numbers that follow always in sight."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llm_lab.plan.hardware import Machine
from llm_lab.recipe.fields import keys_of
from llm_lab.recipe.parts import ModelParts
from llm_lab.recipe.schema import PretrainRecipe

from .asking import Draft, ask_keys
from .console import make_console
from .prompts import Back, Option, choose, confirm, type_in
from .review import review
from .screens import begin_screen, print_model_numbers

Show = Callable[[Draft], None]
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
            "stage": "pretrain",
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
    console = begin_screen("Design a model", draft.raw.get("name", ""))
    print_model_numbers(console, draft.look()[0])
    console.print()


def design(
    draft: Draft, *, write: Callable[[str, Mapping[str, Any]], Path], keep: Callable[[Draft], None]
) -> tuple[Path | None, Draft]:
    """Ask for the parts, review, and write the config. Returns (its folder, or None, and the draft).

    keep: takes the draft as it is, so that a Ctrl-C loses no answer. Raises Back at the first question.
    """

    def show(draft: Draft) -> None:
        keep(draft)
        show_design(draft)

    steps = [partial(step, show=show) for step in (_ask_name, _ask_tokenizer, _ask_parts, _ask_more)]
    draft = run_steps(steps, draft)
    actions = [("save", "Save this design"), ("menu", "Back to the menu, keeping the draft")]
    while True:
        try:
            action, draft = review(
                draft,
                title="Design a model",
                actions=actions,
                show=show,
                only=("model.", "tokenizer"),
                askers={"tokenizer": partial(_ask_tokenizer, show=show)},
            )
        except Back:
            draft = run_steps(steps[-1:], draft)
            continue
        keep(draft)
        if action == "menu":
            return None, draft
        name = draft.raw["name"]
        if (MODELS / name).exists() and not confirm(f"{MODELS / name} exists. Replace it?", default=False):
            draft = _ask_name(draft, show=show)
            continue
        resolved, _ = draft.look()
        make_console().print("Writing ...", style="dim")
        return write(name, resolved.values), draft


def run_steps(steps: list[Callable[[Draft], Draft]], draft: Draft) -> Draft:
    """Run questions one after the other; Back goes to the step before, and out of the first."""
    position = 0
    while position < len(steps):
        try:
            draft = steps[position](draft)
            position += 1
        except Back:
            if position == 0:
                raise
            position -= 1
    return draft


def _ask_name(draft: Draft, *, show: Show) -> Draft:
    show(draft)
    pattern = next(m.pattern for m in PretrainRecipe.model_fields["name"].metadata if hasattr(m, "pattern"))

    def validate(text: str) -> str | None:
        good = re.match(pattern, text.strip())
        return None if good else "Letters, digits, '.', '_' and '-', beginning with a letter or digit."

    name = type_in(
        "A name for the model?",
        default=draft.raw.get("name") or "my-model",
        why=f"It is written to {MODELS}/<name>/config.json.",
        validate=validate,
    )
    return draft.with_answer("name", name)


def ask_tokenizer(draft: Draft) -> Draft:
    """Ask for the tokenizer: bytes, a BPE to train, or a named one."""
    now = draft.value("tokenizer")
    kind = "bpe" if isinstance(now, Mapping) else "bytes" if now in (None, "bytes") else "named"
    picked = choose(
        "Which tokenizer?",
        [Option(key, text) for key, text in TOKENIZERS.items()],
        default=kind,
        why=TOKENIZER_WHY,
    )
    if picked == "bytes":
        return draft.with_answer("tokenizer", "bytes")
    if picked == "bpe":
        default = now["bpe"] if isinstance(now, Mapping) else 4096
        text = type_in(
            "How many entries at most?",
            default=str(default),
            why="1,000 to 4,000 for a small text, 32,000 for much text. Each entry costs hidden_size parameters.",
            validate=lambda text: (
                None
                if text.strip().replace(",", "").isdigit() and 257 <= int(text.replace(",", "")) <= 1_000_000
                else "A whole number from 257 to 1,000,000."
            ),
        )
        return draft.with_answer("tokenizer", {"bpe": int(text.replace(",", ""))})
    name = type_in(
        "Which tokenizer (a folder, or a name on the Hub)?",
        default=now if kind == "named" else "gpt2",
        why="A folder with tokenizer.json, a run of yours, or a name such as gpt2.",
        validate=lambda text: None if text.strip() else "A name or a folder is needed.",
        paths=True,
    )
    return draft.with_answer("tokenizer", name)


def _ask_tokenizer(draft: Draft, *, show: Show) -> Draft:
    show(draft)
    return ask_tokenizer(draft)


def _ask_parts(draft: Draft, *, show: Show) -> Draft:
    return ask_keys(draft, design_paths(advanced=False), show=show)


def _ask_more(draft: Draft, *, show: Show) -> Draft:
    show(draft)
    more = choose(
        "Look at the finer settings too?",
        [
            Option(False, "no, the usual ones are fine"),
            Option(True, "yes: biases, dropout, QK-norm, sliding window ..."),
        ],
        default=False,
        why="They all have sensible values, can be changed in the review, and stand in the config.",
    )
    return ask_keys(draft, design_paths(advanced=True), show=show) if more else draft
