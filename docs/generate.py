"""Write everything that is generated from the schema: README tables, pages in docs/, the public format of recipes.

A test checks that all of it is current.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from llm_lab.commands.argument_parser import commands_of
from llm_lab.commands.arguments import command_groups, make_parser
from llm_lab.estimate.machine import Machine
from llm_lab.recipe.fields import Group, Key, groups_of, keys_of, leaf_keys
from llm_lab.recipe.files import format_value
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZES
from llm_lab.recipe.registry import STAGES, json_schema
from llm_lab.recipe.resolve import resolve
from llm_lab.recipe.stage import Stage, StageRecipe
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.runs.glossary import glossary_page
from llm_lab.studies.experiment_files import SHIPPED, Experiment, allowed_words, read_experiment, shown_value
from llm_lab.studies.verdict import decide

ROOT = Path(__file__).resolve().parent.parent
NO_GPU = Machine((), "", 2, 2**40, False, False)
# Texts for people in a schema, which may change; everything else is the public format.
TEXTS = {"description", "title", "question", "why", "derived", "names"}

# Keys whose choices the README explains, and the stage, whose only choice is the heading.
PARTS = ("size", "position_embedding", "norm", "attention", "activation")
EXPLAINED_ELSEWHERE = {"stage", "optimizer.name", "scheduler.name", *(f"model.{part}" for part in PARTS)}


def _said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def parts_table() -> str:
    """Return a table of all choices of all parts, with descriptions."""
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
        "Generated from the schema by `python docs/generate.py`. A key that is left out gets its default, or a value",
        "derived from the others; unknown keys are errors. On the command line: `llm-lab run RECIPE group.key=value`.",
        "Entries of a list are numbered from 0: `data.0.path=FILE`, `stages.1.train.max_steps=5`.",
        "The [README](../README.md#parts) explains the sizes, parts, optimizers and schedules.",
        "",
        "`model: NAME` is short for `model: {checkpoint: NAME}`; in pretraining, NAME can also be a size or a config.",
        "`forgetting: PATH` is short for `forgetting: {path: PATH}`. `lora: null` switches a group off; on the",
        "command line, that is `lora=off`, because `key=null` removes a key.",
        "",
        "A pipeline has `stages:` with a list of such recipes. Its own `seed`, `device` and `score` are for all stages",
        "that do not set theirs. A stage without `model` starts from the result of the stage before it (or an earlier",
        "one: reward models, evaluations and exports are skipped); with `model: stage:NAME`, from the result of an",
        "earlier stage. A stage without `name` is named after its stage, such as sft; its folder is",
        "checkpoints/PIPELINE/NAME/.",
        "",
        "`optimizer.name` decides which table of the optimizers applies. Without it, pretraining uses",
        f"{_optimizer_of('pretrain')}, the other stages {_optimizer_of('sft')}.",
    ]
    known: dict[str, tuple[str, list[str]]] = {}  # {group: (the stage it was shown for, its rows)}
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
        tables.setdefault(_heading(key, owner, schema), []).append(_row(key, _allowed(key, schema)))
    # Groups that can be left out: what that means is in the table of the keys around them.
    for key, owner in optional_groups_of(schema):
        kind = "a list of groups" if key.kind == "list" else "a group"
        tables[_heading(key, owner, schema)].append(_row(key, f"{kind}, or null"))
    return tables


def _optimizer_of(stage: str) -> str:
    return str(STAGES[stage].recipe.model_fields["optimizer"].get_default(call_default_factory=True).name)


def _allowed(key: Key, schema: type[StageRecipe]) -> str:
    """Return the allowed values; of an optimizer's name, those of the stage: a form also shows the others, and why."""
    if key.path != "optimizer.name":
        return key.allowed()
    names = {group.model_fields["name"].default for group in groups_of(schema.model_fields["optimizer"])}
    return ", ".join(str(name) for name in key.choices or () if name in names)


def optional_groups_of(group: type[Group], prefix: str = "") -> Iterator[tuple[Key, str]]:
    """Yield (key, name of its group) for every group of keys that null switches off, such as lora."""
    for key in keys_of(group, prefix):
        inner = groups_of(key.info)
        if not inner or key.name == "tokenizer":
            continue
        if type(None) in get_args(key.info.annotation):
            yield key, group.__name__
        for member in inner:
            yield from optional_groups_of(member, f"{key.path}.N." if key.kind == "list" else f"{key.path}.")


def _row(key: Key, allowed: str) -> str:
    about, _, left_out = key.help.partition("; left out: ")
    default = f"derived: {left_out}" if left_out else _default(key)
    if key.path == "optimizer.name":
        default = f"`{key.default}` in this table"
    if key.choices and key.path not in EXPLAINED_ELSEWHERE:
        about += "".join(f"<br>`{name}`: {meaning}" for name, meaning in key.choices.items() if meaning)
    return f"| `{key.name}` | {_cell(allowed)} | {_cell(default)} | {_cell(about)} |"


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
    if isinstance(key.default, Group):
        return "on, with these defaults"
    return f"`{format_value(key.default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def anchor(stage: str) -> str:
    """Return the anchor of a stage's heading, as Markdown renderers make it."""
    return re.sub(r"[^a-z0-9 -]", "", f"{stage}: {STAGES[stage].about}".lower()).replace(" ", "-")


def structure(node: Any, key: str | None = None) -> Any:
    """Return a JSON Schema without its texts: keys, types, bounds, defaults and allowed values remain."""
    if isinstance(node, dict):
        if key == "choices":
            return sorted(map(str, node))
        is_text = key not in ("properties", "$defs")
        return {name: structure(value, name) for name, value in node.items() if not (is_text and name in TEXTS)}
    return [structure(item) for item in node] if isinstance(node, list) else node


# Conversations of every kind, in different words for each message.
CALL = {"type": "function", "function": {"name": "add_up", "arguments": {"first": 30, "second": "zwölf"}}}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "one answer": [_said("user", "Who are you?"), _said("assistant", "A model.")],
    "several": [
        *(_said("user", "Who are you?"), _said("assistant", "A model.")),
        *(_said("user", "Since when?"), _said("assistant", "Since Monday, I think.")),
    ],
    "system": [
        *(_said("system", "Be brief."), _said("user", "Who are you?"), _said("assistant", "A model.")),
        *(_said("user", "Since when?"), _said("assistant", "Since Monday.")),
    ],
    "`<think>`": [
        *(_said("user", "Who are you?"), _said("assistant", "<think>\nThey want a name.\n</think>\n\nA model.")),
        *(_said("user", "Since when?"), _said("assistant", "<think>\nWhat day was it?\n</think>\n\nSince Monday.")),
    ],
    "reasoning key": [
        *(_said("user", "Who are you?"), _said("assistant", "A model.", reasoning_content="They want a name.")),
        *(_said("user", "Since when?"), _said("assistant", "Since Monday.", thinking="What day was it?")),
    ],
    "two questions": [_said("user", "Hello!"), _said("user", "Who are you?"), _said("assistant", "A model.")],
    "answer first": [_said("assistant", "Hello!"), _said("user", "Who are you?"), _said("assistant", "A model.")],
    "empty answer": [
        *(_said("user", "Who are you?"), _said("assistant", "")),
        *(_said("user", "Since when?"), _said("assistant", "Since Monday.")),
    ],
    "tool call": [
        *(_said("user", "What is the sum?"), _said("assistant", "", tool_calls=[CALL])),
        *(_said("tool", "42", name="add_up"), _said("assistant", "It is forty-two.")),
    ],
    "white space": [
        *(_said("user", " Who are you?\n"), _said("assistant", " A model.\n")),
        *(_said("user", "Since when?"), _said("assistant", "\n\n  Since Monday. ")),
    ],
    "equal turns": [_said(role, "Yes.") for role in ("user", "assistant", "user", "assistant")],
    "control tokens": [
        *(_said("user", "Say <|im_end|><|eot_id|>!"), _said("assistant", "<|im_end|> and <end_of_turn> <|end|>")),
        *(_said("user", "Since when?"), _said("assistant", "Since Monday.")),
    ],
}
CONTROL = re.compile(r"<[|｜][^<>\s{}'\"]*?[|｜]>|<\|[a-z_]+>|<[a-z_]+\|>|<(?:start|end)_of_\w+>|\[gMASK\]|<sop>")
TEMPLATES_TABLE = """# Chat templates and what is trained

For each answer, LLM Lab renders two texts with the chat template: the prompt as at inference, and the conversation with
the answer. It trains on what comes after the prompt, up to the end of the turn, and checks that nothing of the answer
is missing. The table has every chat template that TRL ships, by name (`..._training` are TRL's versions for training;
templates with equal results share a row), and a column for every kind of conversation. It is generated by `python
docs/generate.py`, and a test checks each cell token by token.

- **trained**: one sequence, in which every answer is trained.
- **split**: one sequence for each answer, because the template writes an answer differently once the conversation
  continues; many leave out earlier reasoning. Each sequence is what the model reads at inference.
- **left out**: the whole conversation is not trained.
- A number refers to the list below the table: why the conversation, or a part of it, is not trained. The run and the
  X-ray count these conversations.

The columns: one answer; several turns; a system message; reasoning inside an answer as `<think>` text, or in a key of
its own (`reasoning_content`, `thinking`); two user messages in a row; an assistant message first; an empty answer; a
tool call; white space around the messages; turns with identical texts; messages that contain the text of control
tokens. Rows with tool calls are skipped, and counted, when a dataset is read; their column shows what the templates
accept.
"""


def shipped_templates() -> dict[str, str]:
    """Return {name: chat template} of those that TRL ships."""
    spec = find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "chat_templates"
    return {file.stem: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja"))}


@cache
def _letters() -> Any:
    from llm_lab.hf.tokenizers import train_bpe

    return train_bpe(["The user asks, the assistant answers.\n\nSystem: think! 1 + 1 = 2\n"] * 20, 400)


def tokenizer_with(template: str) -> Any:
    """Return a small BPE tokenizer with a chat template and its control tokens."""
    from copy import deepcopy

    tokenizer = deepcopy(_letters())
    tokenizer.add_special_tokens({"extra_special_tokens": sorted({*CONTROL.findall(template), "<bos>", "<eos>"})})
    tokenizer.bos_token, tokenizer.eos_token = "<bos>", "<eos>"
    tokenizer.chat_template = template
    return tokenizer


def templates_page() -> str:
    """Return the table of chat templates and kinds of conversations."""
    from llm_lab.hf.conversations import SPLIT, encode_sequences
    from llm_lab.hf.rendering import Refused, pin_date

    reasons: dict[str, int] = {}

    def cell(tokenizer: Any, messages: list[dict[str, Any]]) -> str:
        try:
            found = encode_sequences(tokenizer, messages)
        except Refused as refused:
            return f"left out {reasons.setdefault(refused.reason, len(reasons) + 1)}"
        numbers = [str(reasons.setdefault(one, len(reasons) + 1)) for one in found.remarks if one != SPLIT]
        return " ".join(["split" if len(found.sequences) > 1 else "trained", *numbers])

    rows: dict[tuple[str, ...], list[str]] = {}
    for name, template in shipped_templates().items():
        tokenizer = tokenizer_with(template)
        pin_date(tokenizer, "2026-01-01")
        rows.setdefault(tuple(cell(tokenizer, messages) for messages in SHAPES.values()), []).append(name)
    lines = [TEMPLATES_TABLE, f"| template | {' | '.join(SHAPES)} |", "| --- |" + " --- |" * len(SHAPES)]
    lines += [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in rows.items()]
    lines += ["", *(f"{number}. {_cell(reason)}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


DUELS_PAGE = """# Duels

This page shows which parts learn better, as measured by `llm-lab duel`. Each duel compares two values of one key of
`configs/duels/nano.yaml`, with the same seeds and the same number of tokens (less than one pass over the text). The
runs are short, so that anyone can repeat them on a CPU within minutes:
`llm-lab duel configs/duels/nano.yaml CHANGE --seeds 6 --by tokens`, with the text of the column *change* in quotes. The
loss is still falling fast at their end, so a value that wins here may lose in a long run or a large model.

- **loss of both**: the mean validation loss of the first value and of the second, in nats per token; at nano size, a
  token is a byte.
- **difference**: the second loss minus the first; below zero, the second value is better.
- **verdict**: a value is called better only with at least six seeds, and p of at most 5 % in a sign-flip test.
- **published**: what published sources found, from one pass over much data or from many passes over little. Minutes are
  the training time to a fixed validation loss, before and after the change. Percentages are the share of this time that
  the change saves; nats and bits per byte are how much it lowers the loss. modded-nanogpt (speed records at GPT-2's
  size), nanochat (a small chat model from scratch) and slowrun (the lowest loss with 100 M tokens) are public projects.

The figures are those of `docs/duels.json`, which `docs/record_duel.py` writes from the folder of a finished duel.
`python docs/generate.py` makes this page. [recipe.md](recipe.md) says what each key does.

| question | change | loss of both | difference (95 % interval) | verdict | published |
| --- | --- | --- | --- | --- | --- |
"""

DUELS_AT_MICRO_SIZE = """
## At micro size

The same for models of 2.8 M parameters with a BPE tokenizer of 2,048 entries, from `configs/duels/micro.yaml`. The
learning rates are those of the nano recipe. The other duels were not run at this size.

| change | loss of both | difference (95 % interval) | verdict |
| --- | --- | --- | --- |
"""

# Defaults of the shipped recipes that duels have changed.
DEFAULTS = """
## Defaults

A part becomes the default of the shipped recipes and of the wizard's quick start if a duel with six seeds and the
published results agree. The defaults of recipe keys do not change, so an old recipe gives the same losses again.
The model of `configs/demo.yaml` keeps the defaults of the keys.

| date | default | CPU sizes | GPU sizes |
| --- | --- | --- | --- |
| 2026-11-28 | `model.qk_norm: true` | Better with six of six seeds, by 0.10 nats; the model has the Qwen3 \
architecture of Transformers, so it needs no code of its own and converts to GGUF. \
| Not measured here. Part of modded-nanogpt and nanochat (one pass), of Qwen3, OLMo 2, Gemma 3. |
| 2026-11-28 | `model.activation: swiglu`, unchanged | Better than ReLU² and than GeGLU with six of six seeds, by 0.06 \
and 0.02 nats. | Not measured here. Published results disagree about ReLU² (one pass, many passes) and show no clear \
difference from GeGLU. |
| 2026-11-28 | `optimizer.name: muon`, unchanged | Better than AdamW with six of six seeds. AdamW has one learning \
rate for all weights, tuned with seed 1 (0.002, 0.004, 0.008 end at 1.58, 1.52, 2.42); Muon has a second one, for \
embeddings and norms. | Not measured here. Faster in modded-nanogpt, nanochat and slowrun. |
| 2026-11-28 | `optimizer.normalized: true` in the recipes of tiny Shakespeare only | Better with six of six seeds, by \
0.04 nats. Not used elsewhere yet: the learning rates \
there were chosen for plain Muon. | Not measured here. Published gains are small. |
| 2026-11-28 | `model.value_embeddings: false`, unchanged | No difference shown (p = 0.062), and such a model needs \
its own code. | Not measured here. Published gains are for models with their own code too. |
| 2026-11-29 | `model.residual_scalars: false`, unchanged | Better with six of six seeds, by only 0.01 nats, and such \
a model needs its own code. | Not measured here. Part of modded-nanogpt (one pass). |
| 2026-11-29 | `model.rope_theta: 1000` in the recipes of stories and tiny Shakespeare and the quick start on a CPU | \
Better with six of six seeds, by 0.015 nats, in sequences of 128 tokens. | Unchanged: sequences are longer there. |
| 2026-11-29 | `model.position_embedding: rope`, unchanged | ALiBi is better with six of six seeds, by 0.016 nats, \
about as much as the smaller base of RoPE gains; such a model needs its own code. | Not measured here. RoPE is the \
standard. |
| 2026-11-29 | `model.zero_init: false`, unchanged | Zero is worse with six of six seeds, by 0.04 nats. | Not measured \
here. Published results disagree (one pass, many passes). |
| 2026-11-29 | `train.ema_decay: null`, unchanged | The average is worse with six of six seeds, by 0.008 nats: the \
learning rate already falls to zero, which averages too. | Not measured here. Published gains are for many passes. |
| 2026-11-29 | `model.num_experts: null`, unchanged | Eight experts are better with six of six seeds, by 0.05 nats, \
but such a model has 2.4 M parameters instead of 0.8 M, and a step takes about twice as long on a CPU. | Not measured \
here. nanochat reports no gain. |
"""


def duels_page() -> str:
    """Return the page of the duels that were run, with their verdicts, and of those that were not run yet."""
    import yaml

    duels = yaml.safe_load((ROOT / "configs" / "duels" / "duels.yaml").read_text(encoding="utf-8"))
    results = json.loads((ROOT / "docs" / "duels.json").read_text(encoding="utf-8"))
    lines = []
    for name, duel in duels.items():
        found = results.get(name)
        measured = _measured(found) if found else "- | - | not run yet"
        lines.append(f"| {duel['question']} | `{duel['change']}` | {measured} | {duel['published'].strip()} |")
    at_micro = [
        f"| `{duel['change']}` | {_measured(results[key])} |"
        for name, duel in duels.items()
        if (key := f"{name}@micro") in results
    ]
    larger = DUELS_AT_MICRO_SIZE + "\n".join(at_micro) + "\n" if at_micro else ""
    return DUELS_PAGE + "\n".join(lines) + "\n" + larger + DEFAULTS


def _measured(found: dict[str, Any]) -> str:
    one, two = found["sides"]
    seeds = sorted(one["values"], key=int)
    verdict = decide([two["values"][seed] - one["values"][seed] for seed in seeds])
    means = [sum(side["values"].values()) / len(seeds) for side in (one, two)]
    better = (two if verdict.mean < 0 else one)["value"] if verdict.is_significant else ""
    words = f"`{better}` is better" if better else "no difference shown"
    return (
        f"{means[0]:.4f}, {means[1]:.4f} | {verdict.mean:+.4f} ({verdict.low:+.4f} to {verdict.high:+.4f}) | {words} "
        f"(p = {verdict.p:.3f}, {len(seeds)} seeds, {found['tokens']:,} tokens, {found['date']})"
    )


def experiments_table() -> str:
    """Return the shipped experiments, with a link to the page of each."""
    lines = ["| study | what it shows |", "| --- | --- |"]
    lines += [f"| [{one.name}](experiments/{one.name}.md) | {_cell(one.summary)} |" for one in shipped_experiments()]
    return "\n".join(lines)


def shipped_experiments() -> list[Experiment]:
    """Return the experiments of LLM Lab, including those that can't be read."""
    return [one for file in sorted(SHIPPED.glob("[a-z]*.py")) if (one := read_experiment(file))]


def experiment_page(experiment: Experiment) -> str:
    """Return the page of an experiment: its docstring and its options."""
    lines = [f"# {experiment.title}", "", experiment.summary, "", "```", f"llm-lab study {experiment.name}", "```"]
    lines += ["", f"With its default options it takes {experiment.takes}."] if experiment.takes else []
    lines += ["", experiment.about, "", "## Options", "", "| option | allowed | default | what it is |"]
    lines.append("| --- | --- | --- | --- |")
    for key in experiment.option_keys():
        default = "(required)" if key.required else f"`{shown_value(key.default)}`"
        lines.append(f"| `{key.path}` | {_cell(allowed_words(key))} | {_cell(default)} | {_cell(key.help)} |")
    return "\n".join(lines) + "\n"


def fill(text: str, name: str, body: str) -> str:
    """Replace the text between the markers of a generated part."""
    pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- /generated -->)"
    filled, count = re.subn(pattern, lambda m: f"{m[1]}{body}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"no markers for {name}"
    return filled


def commands_text() -> str:
    """Return the description of every command: its sentence, its arguments, and its examples."""
    known = commands_of(make_parser())
    parts = []
    for group, names in command_groups().items():
        parts.append(f"### {group}\n")
        for name in names:
            parser = known[name]
            parts += [f"#### `{name}`\n", f"{parser.description}\n"]
            parts.append("\n".join(["```", *parser.examples, "```\n"]))
            rows = [f"| `{_as_typed(action)}` | {action.help} |" for action in parser._actions if _is_own(action)]
            if rows:
                parts.append("\n".join(["| argument | what it does |", "| --- | --- |", *rows]) + "\n")
    return "\n".join(parts).rstrip()


def _is_own(action: argparse.Action) -> bool:
    return action.dest not in ("help", "debug", "plain") and action.help != argparse.SUPPRESS


def _as_typed(action: argparse.Action) -> str:
    value = str(action.metavar or "|".join(map(str, action.choices or ())) or action.dest)
    text = f"{action.option_strings[-1]} {value}" if action.option_strings else value
    return (action.option_strings[-1] if action.nargs == 0 else text).replace("|", "\\|")


def pages() -> dict[Path, str]:
    """Return {file: text} of everything that is generated."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = fill(fill(readme, "parts", parts_table()), "sizes", sizes_table())
    studies = fill((ROOT / "docs" / "studies.md").read_text(encoding="utf-8"), "experiments", experiments_table())
    commands = fill((ROOT / "docs" / "commands.md").read_text(encoding="utf-8"), "commands", commands_text())
    schema = json_schema()
    public_format = json.dumps(structure(schema), indent=1, sort_keys=True, ensure_ascii=False)
    return {
        ROOT / "README.md": readme,
        ROOT / "docs" / "recipe.md": recipe_page(),
        ROOT / "docs" / "glossary.md": glossary_page(),
        ROOT / "docs" / "chat-templates.md": templates_page(),
        ROOT / "docs" / "studies.md": studies,
        ROOT / "docs" / "duels.md": duels_page(),
        ROOT / "docs" / "commands.md": commands,
        **{ROOT / "docs" / "experiments" / f"{one.name}.md": experiment_page(one) for one in shipped_experiments()},
        ROOT / "docs" / "recipe.schema.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n",
        ROOT / "tests" / "support" / "recipe_structure.json": public_format + "\n",
    }


if __name__ == "__main__":
    for file, text in pages().items():
        file.write_text(text, encoding="utf-8")
