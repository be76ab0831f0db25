"""Write the tables that are derived from the schema into the README and docs/. A test holds them current."""

from __future__ import annotations

import json
import re
from pathlib import Path

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.schema import OPTIMIZERS, SCHEDULERS, STAGES
from llm_lab.recipe.sizes import SIZES
from llm_lab.recipe.tables import json_schema, option_rows

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = Machine((), "", 2, 2**40, False, False)


def parts_table() -> str:
    """Return every choice of every part, with what it is."""
    groups = {
        "position_embedding": POSITIONS,
        "norm": NORMS,
        "attention": ATTENTIONS,
        "activation": ACTIVATIONS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
    }
    lines = ["| part | choice | what it is |", "| --- | --- | --- |"]
    lines += [f"| {part} | `{name}` | {about} |" for part, choices in groups.items() for name, about in choices.items()]
    return "\n".join(lines)


def sizes_table() -> str:
    """Return the dial with the parameters that each size has."""
    lines = ["| size | parameters | layers × width | heads / KV heads | tokenizer | what for |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, shape in SIZES.items():
        recipe = {"stage": "pretrain", "device": "cpu", "model": {"size": name}, "data": [{"path": "builtin:stories"}]}
        count = resolve(recipe, machine=NO_GPU).shape.parameters
        tokenizer = shape.tokenizer if shape.tokenizer == "bytes" else f"BPE, {shape.tokenizer:,}"
        lines.append(
            f"| `{name}` | {count / 1e6:,.1f} M | {shape.num_hidden_layers} × {shape.hidden_size} | "
            f"{shape.num_attention_heads} / {shape.num_key_value_heads} | {tokenizer} | {shape.about} |"
        )
    return "\n".join(lines)


def recipe_page() -> str:
    """Return the reference of every recipe key."""
    lines = [
        "# Recipe reference",
        "",
        "Made from the schema by `python docs/generate.py`. A key that is left out takes its default or is derived;",
        "unknown keys are errors. On the command line: `llm-lab run RECIPE group.key=value`.",
        "",
        "A pipeline has `stages:` with a list of such recipes; a stage without `model` takes the result of the stage",
        "before it.",
    ]
    known: dict[str, tuple[str, list[str]]] = {}  # group: (the stage it was shown for, its rows)
    for stage, about in STAGES.items():
        lines += ["", f"## {stage}: {about}"]
        same: dict[str, list[str]] = {}
        for group, rows in option_rows(stage).items():
            first, shown = known.setdefault(group, (stage, rows))
            if first != stage and shown == rows:
                same.setdefault(first, []).append(f"`{group}`")
                continue
            known[group] = (stage, rows)
            lines += ["", f"**{group}**", "", "| key | allowed | default | what it does |", "| --- | --- | --- | --- |"]
            lines += rows
        for first, groups in same.items():
            lines += ["", f"As under [{first}](#{anchor(first)}): {', '.join(groups)}."]
    return "\n".join(lines).rstrip() + "\n"


def anchor(stage: str) -> str:
    """Return the address of a stage's heading on the page, as Markdown's readers make it."""
    return re.sub(r"[^a-z0-9 -]", "", f"{stage}: {STAGES[stage]}".lower()).replace(" ", "-")


def fill(text: str, name: str, body: str) -> str:
    """Replace what stands between the markers of a generated part."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"
    filled, count = re.subn(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"no markers for {name}"
    return filled


def pages() -> dict[Path, str]:
    """Return {file: text} of everything that is generated."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = fill(fill(readme, "parts", parts_table()), "sizes", sizes_table())
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "recipe.md": recipe_page(),
        ROOT / "docs" / "recipe.schema.json": json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n",
    }


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
