"""Tables of what there is: recipes, data, parts, runs; a checkpoint; the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from llm_lab.plan.parameters import read_adapter_json, read_config_json, shape_of_config
from llm_lab.recipe.errors import Problem, UserError
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.native import native_architecture
from llm_lab.recipe.parts import ACTIVATIONS, ATTENTIONS, NORMS, POSITIONS, SIZE_CHOICES
from llm_lab.recipe.schema import OPTIMIZERS, SCHEDULERS
from llm_lab.runs.folder import RunFolder, list_runs

from .console import count, make_console, one_line

STATUS_STYLE = {"done": "good", "running": "help", "failed": "bad", "interrupted": "warn", "stopped": "warn"}
DATA_FORMS = {
    "builtin:stories": "little English stories, made on the spot; no network needed",
    "a file": "txt, md (one document), jsonl, csv, parquet (a document a row)",
    "a folder or glob": "all its files of one kind: texts/, 'data/*.jsonl'",
    "a Hub name": "owner/name, with subset, split and text_column",
}


def _table(title: str, rows: Iterable[Sequence[Any]]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = title, "left", "title"
    for row in rows:
        if not table.columns:
            for number in range(len(row)):
                table.add_column(no_wrap=number == 0, overflow="fold")
        table.add_row(*row)
    return table


def print_listing(what: str | None, recipes: Sequence[Path]) -> None:
    """Print one list, or all four."""
    console = make_console()
    printers = {
        "recipes": lambda: console.print(_recipes(recipes)),
        "data": lambda: console.print(_table("data: what data.0.path can name", DATA_FORMS.items())),
        "parts": lambda: _print_parts(console),
        "runs": lambda: console.print(runs_table(list_runs())),
    }
    for number, name in enumerate([what] if what else printers):
        if number:
            console.print()
        printers[name]()


def _recipes(recipes: Sequence[Path]) -> Any:
    rows = [(file.stem, recipe_summary(file)) for file in recipes]
    return _table("recipes: llm-lab run NAME", rows or [("none", "configs/ is empty")])


def recipe_summary(file: Path) -> str:
    """Return a recipe's own first comment line, or what it does in words."""
    try:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        if first.startswith("#"):
            return first.lstrip("# ").rstrip()
        raw = read_recipe_file(file)
        return str(raw.get("stage") or f"pipeline of {len(raw.get('stages', []))} stages")
    except (OSError, IndexError, UnicodeDecodeError, UserError):
        return "(not readable)"


def _print_parts(console: Any) -> None:
    groups = {
        "model.size": SIZE_CHOICES,
        "model.position_embedding": POSITIONS,
        "model.norm": NORMS,
        "model.attention": ATTENTIONS,
        "model.activation": ACTIVATIONS,
        "optimizer.name": OPTIMIZERS,
        "scheduler.name": SCHEDULERS,
    }
    for number, (key, choices) in enumerate(groups.items()):
        if number:
            console.print()
        console.print(_table(key, choices.items()))


def runs_table(runs: Sequence[RunFolder], limit: int | None = None) -> Any:
    """Return a table of runs, newest first."""
    from rich.text import Text

    rows = []
    for run in runs[:limit]:
        facts, status = run.facts(), run.status()
        loss = facts.get("results", {}).get("eval_loss")
        when = datetime.fromtimestamp(facts.get("created_at", 0)).strftime("%d %b %H:%M")
        rows.append(
            (
                one_line(str(run.path)),
                Text(status, style=STATUS_STYLE.get(status, "")),
                f"{count(facts['parameters'])} params" if facts.get("parameters") else "",
                f"val loss {loss:.3f}" if loss is not None else "",
                Text(when, style="dim"),
            )
        )
    return _table("runs", rows or [("none yet", "", "", "", "")])


def print_checkpoint(name: str, folder: Path) -> None:
    """Print what a checkpoint is: parts, parameters, tokens seen, losses, lineage, what loads it."""
    from rich.text import Text

    console = make_console()
    config = read_config_json(folder)
    adapter = None if (folder / "config.json").exists() else read_adapter_json(folder)
    if config is None and adapter is not None:
        why = f"the base of this adapter is not at {adapter.get('base_model_name_or_path')}"
        raise UserError(Problem(str(folder), why, mend="Put it there, or name its place in adapter_config.json."))
    if config is None:
        raise UserError(Problem(str(folder / "config.json"), "this is no config: not the JSON of one object"))
    run = next((RunFolder(p) for p in (folder, *folder.parents[:2]) if (p / "run.json").is_file()), None)
    rows: list[tuple[str, Any]] = [("folder", str(folder)), ("architecture", _architecture(config))]
    if adapter is not None:
        rows[1:1] = _adapter_rows(adapter)
    shape = shape_of_config(config)
    if shape is not None:
        parts = ", ".join(f"{part} {count(number)}" for part, number in shape.parameters_by_part.items() if number)
        rows.append(("parameters", f"{shape.parameters:,} ({parts})"))
        rows.append(("cache", f"{shape.cache_bytes_per_token():,} bytes a token in bf16"))
    rows.append(("vocabulary", f"{config.get('vocab_size', 0):,} entries"))
    rows.append(("context", f"{config.get('max_position_embeddings', 0):,} tokens"))
    if adapter is not None:
        rows.append(("loads in", "peft, beside its base; whole and anywhere after: llm-lab merge " + name))
    elif any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        rows.append(("loads in", _loads_in(config)))
    else:
        rows.append(("weights", "none here: this is a design, or a copy that is not whole"))
    if run is not None:
        rows += _run_rows(run, folder)
    console.print(_table(one_line(name), [(key, Text(one_line(str(value)))) for key, value in rows]))


def _adapter_rows(adapter: dict[str, Any]) -> list[tuple[str, Any]]:
    kind = "DoRA" if adapter.get("use_dora") else "LoRA"
    layers = adapter.get("target_modules") or []
    names = ", ".join(sorted(layers)) if isinstance(layers, list) else layers
    told = f"{kind}, r {adapter.get('r')}, alpha {adapter.get('lora_alpha')}, on {names}"
    return [("adapter", told), ("base", adapter.get("base_model_name_or_path"))]


def _architecture(config: dict[str, Any]) -> str:
    kind = config.get("model_type", "unknown")
    if kind != "llm_lab":
        return kind
    keys = ("position_embedding", "norm", "activation")
    return "from parts: " + ", ".join(str(config.get(key)) for key in keys)


def _loads_in(config: dict[str, Any]) -> str:
    if config.get("model_type") == "llm_lab":
        _, reason = native_architecture(config)
        return f"transformers with trust_remote_code=True ({reason})"
    return "any tool that loads this architecture; nothing of LLM Lab is needed"


def _bits(row: dict[str, Any]) -> str:
    return f" nats a token, {row['bits_per_byte']:.4f} bits a byte" if "bits_per_byte" in row else ""


def _run_rows(run: RunFolder, folder: Path) -> list[tuple[str, Any]]:
    facts = run.facts()
    rows: list[tuple[str, Any]] = [("run", f"{run.path}: {facts.get('stage', 'pipeline')}, {run.status()}")]
    step = folder.name.removeprefix("checkpoint-") if folder.name.startswith("checkpoint-") else None
    for row in reversed(run.metrics()):
        if "eval_loss" in row and (step is None or row["step"] <= int(step)):
            rows.append(
                (
                    "validation",
                    f"loss {row['eval_loss']:.4f}{_bits(row)} at step {row['step']:,}",
                )
            )
            break
    tokens = facts.get("results", {}).get("train_tokens")
    if tokens and step is None:
        rows.append(("trained on", f"{tokens:,} tokens"))
    for source in facts.get("data", []):
        rows.append(("data", f"{source['path']} ({source['fingerprint'][:12]})"))
    parent = facts.get("parent")
    rows.append(("from", parent["path"] if parent else "scratch"))
    rows.append(("recipe", str(run.recipe_path)))
    return rows


def print_doctor(findings: Sequence[Any]) -> None:
    """Print what the machine can do, with what to do about what it can't."""
    from rich.text import Text

    console = make_console()
    marks = {"good": "ok", "warn": "--", "bad": "!!"}
    rows = []
    for finding in findings:
        text = Text(finding.text)
        if finding.mend:
            text.append(f"\n{finding.mend}", style="help")
        rows.append((Text(marks[finding.status], style=finding.status), finding.name, text))
    console.print(_table("doctor", rows))
