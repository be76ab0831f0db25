"""Write what is generated from the schema: tables in the README, pages in docs/, and the public format of recipes.

A test checks that all of it is current.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import Key, groups_of, leaf_keys
from llm_lab.recipe.files import format_value
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZES
from llm_lab.recipe.registry import STAGES, json_schema
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.stage import Stage, StageRecipe
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.runs.glossary import glossary_page

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = Machine((), "", 2, 2**40, False, False)
# What people read in a schema, which may change; all else is the public format.
TEXTS = {"description", "title", "question", "why", "derived", "names"}


def parts_table() -> str:
    """Return every choice of every part, with its description."""
    groups = {
        "position_embedding": POSITIONS,
        "norm": NORMS,
        "attention": ATTENTIONS,
        "activation": ACTIVATIONS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
    }
    lines = ["| part | choice | description |", "| --- | --- | --- |"]
    lines += [f"| {part} | `{name}` | {about} |" for part, choices in groups.items() for name, about in choices.items()]
    return "\n".join(lines)


def sizes_table() -> str:
    """Return the preset sizes with the parameters of each."""
    lines = ["| size | parameters | layers × width | heads / KV heads | tokenizer | use |"]
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
        "Generated from the schema by `python docs/generate.py`. A key left out gets its default or is derived;",
        "unknown keys are errors. On the command line: `llm-lab run RECIPE group.key=value`.",
        "",
        "A pipeline has `stages:` with a list of such recipes; a stage without `model` starts from the result of the",
        "stage before it.",
    ]
    known: dict[str, tuple[str, list[str]]] = {}  # group: (the stage it was shown for, its rows)
    for stage in STAGES.values():
        lines += ["", f"## {stage.name}: {stage.about}"]
        same: dict[str, list[str]] = {}
        for group, rows in option_rows(stage).items():
            first, shown = known.setdefault(group, (stage.name, rows))
            if first != stage.name and shown == rows:
                same.setdefault(first, []).append(f"`{group}`")
                continue
            known[group] = (stage.name, rows)
            lines += ["", f"**{group}**", "", "| key | allowed | default | what it does |", "| --- | --- | --- | --- |"]
            lines += rows
        for first, groups in same.items():
            lines += ["", f"As under [{first}](#{anchor(first)}): {', '.join(groups)}."]
    return "\n".join(lines).rstrip() + "\n"


def option_rows(stage: Stage) -> dict[str, list[str]]:
    """Return {group: the rows of its table} of a stage's recipe."""
    schema = stage.recipe
    tables: dict[str, list[str]] = {}
    for key, owner in leaf_keys(schema):
        row = f"| `{key.name}` | {_cell(key.allowed())} | {_cell(_default(key))} | {_cell(key.help)} |"
        tables.setdefault(_heading(key, owner, schema), []).append(row)
    return tables


def _heading(key: Key, owner: str, schema: type[StageRecipe]) -> str:
    top, _, _ = key.path.rpartition(".")
    if not top:
        return "top level"
    groups = groups_of(schema.model_fields[top.split(".")[0]])
    named = next((g for g in groups if g.__name__ == owner), None)
    label = top.replace(".N", "[]")
    if named is None or len(groups) == 1:
        return label
    name = named.model_fields.get("name")
    return (
        f"{label}: {name.default}"
        if name is not None
        else f"{label}: {_decapitalized((named.__doc__ or '').split('.')[0])}"
    )


def _decapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]


def _default(key: Key) -> str:
    if key.required:
        return "(required)"
    if key.derived:
        return f"derived: {key.derived}"
    return f"`{format_value(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def anchor(stage: str) -> str:
    """Return the anchor of a stage's heading, as Markdown renderers make it."""
    return re.sub(r"[^a-z0-9 -]", "", f"{stage}: {STAGES[stage].about}".lower()).replace(" ", "-")


def structure(node: Any, key: str | None = None) -> Any:
    """Return a JSON Schema without its texts: keys, types, bounds, defaults and allowed values are left."""
    if isinstance(node, dict):
        if key == "choices":
            return sorted(map(str, node))
        is_text = key not in ("properties", "$defs")
        return {name: structure(value, name) for name, value in node.items() if not (is_text and name in TEXTS)}
    return [structure(item) for item in node] if isinstance(node, list) else node


def fill(text: str, name: str, body: str) -> str:
    """Replace what is between the markers of a generated part."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"
    filled, count = re.subn(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"no markers for {name}"
    return filled


def pages() -> dict[Path, str]:
    """Return {file: text} of everything that is generated."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = fill(fill(readme, "parts", parts_table()), "sizes", sizes_table())
    schema = json_schema()
    public_format = json.dumps(structure(schema), indent=1, sort_keys=True, ensure_ascii=False)
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "recipe.md": recipe_page(),
        ROOT / "docs" / "glossary.md": glossary_page(),
        ROOT / "docs" / "recipe.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        ROOT / "tests" / "support" / "recipe_structure.json": public_format + "\n",
    }


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
