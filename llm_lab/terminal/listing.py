"""Lists of recipes, data, parts and runs; what the machine can do; and everything about one checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_lab.data.builtin import ABOUT_BUILTIN
from llm_lab.errors import Problem, UserError
from llm_lab.estimate.adapter_base import base_circle, find_base, read_adapter_json
from llm_lab.estimate.compatibility import describe_architecture, what_loads
from llm_lab.estimate.formatting import count, size
from llm_lab.estimate.gguf_header import has_chat_template, is_gguf
from llm_lab.estimate.model_library import LibraryModel
from llm_lab.estimate.parameters import context_in, read_config_json, shape_of_config
from llm_lab.hf.hub import lfs_pointers
from llm_lab.recipe.optimizers import OPTIMIZERS
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZE_CHOICES
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.scoring import REWARDS
from llm_lab.recipe.train_loop import SCHEDULERS
from llm_lab.recipe.what_fits import FULL, LORA, QLORA, LibraryEntry, library
from llm_lab.runs.describe import describe_evaluation, describe_proof, headline_results, warnings_of
from llm_lab.runs.entries import list_entries
from llm_lab.runs.folder import RunFolder, is_reward_model, run_of
from llm_lab.runs.lineage import CHANGED, GONE, PARENT, Digest, Node, line_of, main_line, trace
from llm_lab.wizard.recipe_question import recipe_summary

from .console import is_plain, make_console, one_line, supports_unicode
from .prompt_layout import wrapped
from .run_list import print_runs

if TYPE_CHECKING:
    from rich.console import Console

NOTHING = "nothing"
LEFT_OUT_FIRST = ("license", "reads", "kind")  # columns of the table of models
SHORT_METHODS = {FULL: "all", LORA: "LoRA", QLORA: "QLoRA"}
FITS_HELP = (
    "size: parameters. reads: the longest input, in tokens. trains: what fits on this machine in SFT, with up "
    "to 1,024 tokens per sequence: all weights, else a LoRA adapter, else QLoRA (LoRA on a base in 4 bits). gated: "
    "accept the terms on its page on the Hub, then sign in: hf auth login."
)
DATA_FORMS = {
    **{f"builtin:{name}": text for name, text in ABOUT_BUILTIN.items()},
    "a file": "txt or md (one document), jsonl, csv or parquet (one document per row)",
    "a folder or glob": "all its files of one kind: texts/, 'data/*.jsonl'",
    "a Hub dataset": "owner/name, with subset, split and text_column",
}


PARTS: dict[str, Mapping[str, str]] = {
    "model.size": SIZE_CHOICES,
    "model.position_embedding": POSITIONS,
    "model.norm": NORMS,
    "model.attention": ATTENTIONS,
    "model.activation": ACTIVATIONS,
    "optimizer.name": OPTIMIZERS,
    "scheduler.name": SCHEDULERS,
    "rewards.0.name": REWARDS,
}


def table(title: str, rows: Iterable[Sequence[Any]]) -> Any:
    """Return a table without rules; only its first column is never wrapped."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title, "left", "title"
    for row in rows:
        if not table.columns:
            for number in range(len(row)):
                table.add_column(no_wrap=number == 0, overflow="fold")
        table.add_row(*row)
    return table


def _facts(title: str, rows: Sequence[tuple[str, str]], columns: int) -> Any:
    """Return a table of names and texts; lines break between words, but not between a number and its unit."""
    from rich.text import Text

    room = max(20, columns - max((len(name) for name, _ in rows), default=0) - 2)
    texts = [(name, Text(wrapped(text, room), style="warn" if name == "warning" else "")) for name, text in rows]
    return table(title, texts)


def print_listing(what: str | None, recipes: Sequence[Path]) -> None:
    """Print one list, or all of them."""
    console = make_console()
    printers = {
        "recipes": lambda: console.print(_recipes(recipes)),
        "data": lambda: console.print(table("data: values of data.0.path", DATA_FORMS.items())),
        "models": lambda: print_library(console, library()),
        "parts": lambda: _print_parts(console),
        "runs": lambda: print_runs(list_entries()),
    }
    for number, name in enumerate([what] if what else printers):
        if number:
            console.print()
        printers[name]()


def print_library(console: Console, entries: Sequence[LibraryEntry]) -> None:
    """Print the models of the library, and what fits on the machine."""
    from rich.table import Table
    from rich.text import Text

    heads = ("name on the Hub", "size", "reads", "kind", "license", "trains")
    rows = [(*library_row(entry.model), SHORT_METHODS[entry.best.method] if entry.best else NOTHING)
            for entry in entries]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    shown = list(range(len(heads)))
    for head in LEFT_OUT_FIRST:  # if the terminal is narrow
        if sum(widths[number] + 1 for number in shown) > console.width:
            shown.remove(heads.index(head))
    listed = Table.grid(padding=(0, 1))
    listed.title, listed.title_justify, listed.title_style = "models: values of model.checkpoint", "left", "title"
    for number in shown:
        listed.add_column(justify="right" if heads[number] in ("size", "reads") else "left", no_wrap=True)
    listed.add_row(*(Text(heads[number], style="dim") for number in shown))
    for row in rows:
        fits = Text(row[-1], "bad" if row[-1] == NOTHING else "good")
        listed.add_row(*(row[number] for number in shown[:-1]), fits)
    console.print(listed)
    console.print()
    console.print(Text(FITS_HELP, style="help"))


def library_row(model: LibraryModel) -> tuple[str, str, str, str, str]:
    """Return a model of the library in a few words: name, parameters, context, kind, license."""
    gated = {True: ", gated", False: "", None: ", gated?"}[model.gated]
    context = f"{model.context // 1024} k" if model.context >= 1024 else str(model.context)
    kind = "chat" if model.is_chat else "base"
    return model.name, count(model.parameters), context, kind, model.license + gated


def _recipes(recipes: Sequence[Path]) -> Any:
    rows = [(file.stem, recipe_summary(file)) for file in recipes]
    return table("recipes: llm-lab run NAME", rows or [("none", "no recipes in configs/")])


def _print_parts(console: Any) -> None:
    for number, (key, choices) in enumerate(PARTS.items()):
        if number:
            console.print()
        console.print(table(key, choices.items()))


def print_doctor(findings: Sequence[Any], title: str) -> None:
    """Print what the machine can do, and how to enable what it can't do."""
    from rich.text import Text

    console = make_console()
    marks = {"good": "ok", "warn": "--", "bad": "!!"}
    rows = []
    for finding in findings:
        text = Text(finding.text)
        if finding.fix:
            text.append(f"\n{finding.fix}", style="help")
        rows.append((Text(marks[finding.status], style=finding.status), finding.name, text))
    console.print(table(title, rows))


# Marks for a model on the main line, for one on a side branch, and for the lines below; with and without line drawing.
RAILS = {True: ("●", "├─●", "│"), False: ("*", "|-*", "|")}
SHOWN_EVALUATIONS, SHOWN_NUMBERS = 5, 8

Row = tuple[str, str]


def print_checkpoint(name: str, folder: str, *, digest_of: Digest, heading: bool = True) -> None:
    """Print what a checkpoint is, and its lineage.

    folder: that of its weights, or of a run without a model. digest_of: returns the digest of a folder's weights.
    heading: whether to print the name above it.

    UserError if it can't be read.
    """

    console = make_console()
    path = Path(folder)
    if not path.is_dir() and not is_gguf(path):
        why = "not on this machine; `show` does not query the Hub"
        raise UserError(Problem(name, why, fix="Download it first, for example with: llm-lab chat " + name))
    node = trace(folder, digest_of=digest_of)
    run = node.run
    has_model = is_gguf(path) or (path / "config.json").is_file() or (path / "adapter_config.json").is_file()
    rows = [*(_model_rows(name, path) if has_model or run is None else [("folder", folder)])]
    if run is not None:
        rows = [*_run_rows(run, node), *rows]  # the result first: a low terminal shows only the beginning
    elif (broken := run_of(path)) is not None:
        rows += [("run", f"{broken.path}: {broken.status()}"), *(("warning", text) for text in warnings_of(broken))]
    rows += [("evaluation", describe_evaluation(row, SHOWN_NUMBERS)) for row in node.evaluations[-SHOWN_EVALUATIONS:]]
    title = one_line(name) if heading else ""
    console.print(_facts(title, [(key, one_line(str(value))) for key, value in rows], console.width))
    if run is not None or node.links:
        console.print()
        print_line(console, node)


def _model_rows(name: str, folder: Path) -> list[tuple[str, Any]]:
    config = read_config_json(folder)
    if config is None and is_gguf(folder):
        raise UserError(Problem(str(folder), "this is not a GGUF file of version 2 or 3, or it is not complete"))
    adapter = None if (folder / "config.json").exists() else read_adapter_json(folder)
    if config is None and adapter is not None:
        if circle := base_circle(folder):
            raise UserError(Problem(str(folder), f"adapters that are each other's base: {' -> '.join(circle)}"))
        why = f"the base model of this adapter is not at {adapter.get('base_model_name_or_path')}"
        raise UserError(Problem(str(folder), why, fix="Move it there, or set its path in adapter_config.json."))
    if config is None:
        raise UserError(Problem(str(folder / "config.json"), "not a model config: it is not a JSON object"))
    rows: list[tuple[str, Any]] = [("folder", str(folder)), ("architecture", describe_architecture(config))]
    if is_gguf(folder):
        rows[0] = ("GGUF file", f"{folder}, {size(folder.stat().st_size)}")
    if adapter is not None:
        rows[1:1] = _adapter_rows(adapter, find_base(folder))
    shape = shape_of_config(config)
    if shape is not None:
        parts = ", ".join(f"{part} {count(number)}" for part, number in shape.parameters_by_part.items() if number)
        rows.append(("parameters", f"{shape.parameters:,} ({parts})"))
        if shape.active_parameters < shape.parameters:
            rows.append(("active", f"{shape.active_parameters:,} parameters per token: a token uses only some experts"))
        rows.append(("KV cache", f"{shape.cache_bytes_per_token():,} bytes per token in bf16"))
    rows.append(("vocabulary", f"{config.get('vocab_size', 0):,} entries"))
    context = context_in(config)
    rows += [("context", f"{context:,} tokens")] if context else []
    if is_gguf(folder):
        return [*rows, ("chat template", "in the file" if has_chat_template(folder) else "none")]
    whole = adapter is None
    if whole and not (any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))):
        return [*rows, ("weights", "none: a design, or an incomplete copy")]
    if pointers := lfs_pointers(folder):
        return [*rows, ("weights", f"not downloaded: {pointers[0]} is a Git LFS pointer; run git lfs pull there")]
    if is_reward_model(folder):
        return [*rows, ("reward model", "scores text; it can't generate text or be exported")]
    if not whole:
        rows.append(("loads in", "peft, together with its base; merge it (llm-lab merge) for a full model"))
    return rows + _loading_rows(config, *(("loads in", "GGUF") if whole else ("merged", "merged, GGUF")))


def _loading_rows(config: Mapping[str, Any], key: str, gguf_key: str) -> list[Row]:
    """Return what can load a model, and whether it can be converted to GGUF."""
    loads = what_loads(config)
    if loads.architecture is None:
        loads_in = f"transformers with trust_remote_code=True ({loads.native_reason})"
    else:
        loads_in = loads.native_reason
    gguf = f"yes: {loads.gguf_reason}" if loads.gguf else f"no: {loads.gguf_reason}"
    return [(key, loads_in), (gguf_key, gguf)]


def _adapter_rows(adapter: dict[str, Any], base: str | None) -> list[tuple[str, Any]]:
    kind = "DoRA" if adapter.get("use_dora") else "LoRA"
    layers = adapter.get("target_modules") or []
    names = ", ".join(sorted(layers)) if isinstance(layers, list) else str(layers)
    adapter_text = f"{kind}, r {adapter.get('r')}, alpha {adapter.get('lora_alpha')}, on {names}"
    return [("adapter", adapter_text), ("base", base)]


def _run_rows(run: RunFolder, node: Node) -> Iterator[Row]:
    yield "run", f"{run.path}: {node.stage}, {run.status()}"
    for row in reversed(run.metrics()):
        if "eval_loss" in row and (node.step is None or row["step"] <= node.step):
            shown = headline_results({key: row[key] for key in ("eval_loss", "bits_per_byte") if key in row})
            yield "validation", f"{', '.join(shown)} at step {row['step']:,}"
            break
    tokens = (node.facts.get("results") or {}).get("train_tokens")
    if tokens and node.step is None:
        yield "trained on", f"{tokens:,} tokens"
    for line in describe_proof(node.facts["proof"]) if node.facts.get("proof") else ():
        yield "verification", line
    replay = node.facts.get("replay")
    if replay:
        yield "replay of", replay["of"]
    for warning in warnings_of(run):
        yield "warning", warning


def print_line(console: Console, node: Node) -> None:
    """Print the lineage of a model, the root first, side branches indented."""
    from rich.table import Table
    from rich.text import Text

    main, branch, below = RAILS[supports_unicode(console)]
    plain = is_plain()  # plain tables are lines of text, in which rails are useless
    trunk = {one.place for one in main_line(node)}
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    rows: list[tuple[str, Text, Text]] = []
    before: Node | None = None  # the previous one on the main line
    line = line_of(node)
    for one in line:
        on_trunk = one.place in trunk
        bar = "" if one is line[-1] else below
        for link in one.links:
            if link.node is None:
                missing = Text(f"{one_line(link.place)}: missing", style="warn")
                rows.append((main if on_trunk else branch, Text("?"), missing))
        title = Text(one_line(_heading(one)), style="title")
        if one is node:
            title.append("  <- this model", style="good")
        rows.append((main if on_trunk else branch, Text(one.stage or "-", style="title"), title))
        for key, value, style in _node_rows(one, before if on_trunk else None):
            rows.append((bar, Text(f"{key} ", style="dim"), Text(one_line(value), style=style)))
        before = one if on_trunk else before
    console.print(Text("lineage", style="title"))
    room = max(20, console.width - max(len(rail) for rail, *_ in rows) - max(len(key) for _, key, _ in rows) - 2)
    for rail, key, text in rows:
        if plain:
            console.print(Text(f"{key.plain.strip()}: {text.plain}"), soft_wrap=not console.is_terminal)
            continue
        if len(text) > room and len(text.spans) == 0:
            text = Text(wrapped(text.plain, room), style=text.style)
        grid.add_row("\n".join([rail] * (text.plain.count("\n") + 1)) if rail == below else rail, key, text)
    if not plain:
        console.print(grid)


def _heading(node: Node) -> str:
    place = node.name if node.step is None else f"{node.name}, checkpoint-{node.step}"
    if node.run is None:
        return f"{place}, not made by LLM Lab"
    return f"{place}, from scratch" if node.parent is None and node.stage == PRETRAIN.name else place


def _node_rows(node: Node, before: Node | None) -> Iterator[tuple[str, str, str]]:
    """Yield (key, value, style) for one model of the lineage."""
    parent = node.parent
    if parent is not None and parent.node is not None and parent.node is not before:
        yield "from", parent.node.name, ""
    for link in node.others:
        yield link.key, link.node.name if link.node else link.place, ""
    for link in node.links:
        if link.state == CHANGED:
            yield "warning", f"the weights in {link.place} have changed since", "warn"
        elif link.state == GONE and link.key != PARENT:
            yield "warning", f"{link.place} no longer exists", "warn"
    if node.run is None:
        return
    status = node.run.status()
    if status != "done":
        yield "status", status, "warn"
    yield "recipe", str(node.run.recipe_path), ""
    for source in node.facts.get("data") or ():
        yield "data", f"{source['path']} ({source['fingerprint'][:12]})", ""
    results = headline_results(node.facts.get("results") or {})
    if results:
        yield "results", ", ".join(results), ""
    if node.evaluations:
        yield "evaluation", describe_evaluation(node.evaluations[-1], SHOWN_NUMBERS), ""
