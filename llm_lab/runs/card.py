"""What the Hub reads of a model card: its front matter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from llm_lab.errors import UserError
from llm_lab.estimate.formatting import decimal, duration
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import STAGES

from .describe import OF_THE_MACHINE, VERDICTS, data_rows, reached, versions, warnings_of
from .folder import write_atomically
from .lineage import Node, main_line, trace
from .loading import (
    ADAPTER,
    GGUF,
    LIBRARIES,
    ModelFolder,
    count_parameters,
    describe_form,
    loading_code,
    look_at_folder,
)
from .metric_help import meaning_of
from .safe_text import code, fence, is_absolute, plain, table, texts_in, without_paths, without_secrets

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def front_matter(folder: ModelFolder, node: Node) -> str:
    """Return the block of YAML at the head of a model card."""
    facts: dict[str, Any] = {
        "library_name": LIBRARIES[folder.kind],
        "pipeline_tag": "text-classification" if folder.judges else "text-generation",
        "tags": ["llm-lab", *([node.stage] if node.stage else []), *(["lora"] if folder.kind == ADAPTER else [])],
    }
    base = _hub_base(node)
    if base is not None:
        facts["base_model"] = base
        relation = _relation(folder, node)
        facts |= {"base_model_relation": relation} if relation else {}
    datasets = [item["path"] for one in main_line(node) for item in one.facts.get("data") or () if item.get("hub")]
    if datasets:
        facts["datasets"] = list(dict.fromkeys(datasets))
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def _hub_base(node: Node) -> str | None:
    """Return the nearest model before this one that is on the Hub, or None."""
    before = [node] if node.run is None else list(reversed(main_line(node)[:-1]))
    for one in before:
        if one.run is not None and one.facts.get("pushed"):
            return one.facts["pushed"]["repo"]
        if one.run is None and is_hub_name(one.place):
            return one.place
    return None


def is_hub_name(place: str) -> bool:
    """Tell whether a model is named as on the Hub, and is not a folder here."""
    return _HUB_NAME.fullmatch(place) is not None and not Path(place).exists()


def _relation(folder: ModelFolder, node: Node) -> str | None:
    """Return how the Hub calls the way from base to this; None where it is the same weights in the same form."""
    if folder.kind == ADAPTER:
        return "adapter"
    if node.run is None:
        return "quantized" if folder.kind == GGUF else None
    return "finetune"  # a merged adapter too: "merge" is the Hub's word for several models in one


NAME = "README.md"
NOT_SHOWN = {*OF_THE_MACHINE, "step", "size_bytes"}
# Columns of metrics.jsonl that tell of the moment, not of the model.
OF_THE_STEP = {"step", "learning_rate", "grad_norm", "epochs", "mix", *OF_THE_MACHINE}


def write_card(
    folder: Path, *, source: str | Path | None = None, proof: Mapping[str, Any] | None = None, repo: str | None = None
) -> str:
    """Write README.md into a folder that others load; returns its text.

    source: the weights' own folder (or a name on the Hub) where `folder` is made from another. proof: what loading
    it came to, as run.json keeps it. repo: owner/name on the Hub, where it is sent there.
    """
    looked = look_at_folder(folder)
    node = trace(str(source or folder), digest_of=lambda path: None)
    text = front_matter(looked, node) + "\n".join(_body(looked, node, proof, repo))
    text = without_secrets(without_paths(text, tuple(_known_paths(node))))
    write_atomically(folder / NAME, text)
    return text


def _body(folder: ModelFolder, node: Node, proof: Mapping[str, Any] | None, repo: str | None) -> Iterator[str]:
    facts = node.facts
    step = f", checkpoint of step {node.step:,}" if node.step is not None else ""
    name = (repo or "").rpartition("/")[2] or (_name(node) if node.run else Path(node.place).name)
    yield f"# {plain(name)}\n"
    stage = STAGES.get(node.stage or "")
    if stage is not None and stage.made:
        yield f"A language model made with LLM Lab: {stage.made}{step}.\n"
    else:
        yield "A language model, written in this form by LLM Lab.\n"
    yield from _section("What it is", table(("", ""), _what(folder, node)))
    codes = loading_code(folder, repo or ".", in_transformers=_is_proven(proof, "Transformers"))
    where = "" if repo else "In this folder:"
    lines = [where, *(fence(text, language) for language, text in codes), *_needs(folder)]
    yield from _section("How it is loaded", lines)
    yield from _section("What loading it has shown", _proof(proof))
    rows = [[name, decimal(value), *meaning_of(name, node.stage)] for name, value in _results(node)]
    yield from _section("What it came to", table(("result", "value", "what it is", "unit"), rows))
    head = ("measured on", "result", "value", "what it is", "unit")
    yield from _section("Measured since", table(head, _measured(node)))
    rows = [[code(path), code(fingerprint), amount] for path, fingerprint, amount in data_rows(facts)]
    yield from _section("Data", table(("data", "fingerprint", "read"), rows))
    yield from _section("Where it comes from", table(("stage", "model", "made from", "came to"), _lineage(node)))
    warned = warnings_of(node.run) if node.run else []
    yield from _section("To mind", [f"- {plain(line)}" for line in warned])
    yield from _section("How it was made", _making(node))


def _needs(folder: ModelFolder) -> list[str]:
    """Return what must be there for the code to run elsewhere."""
    if folder.kind == ADAPTER and folder.base and not is_hub_name(folder.base):
        fix = "Where it is elsewhere, name its place in adapter_config.json, or merge first: `llm-lab merge`"
        return [f"Its base stood in a folder of the machine it was made on. {fix}."]
    return []


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    lines = [line for line in lines if line]
    if lines:
        yield f"## {title}\n"
        yield from lines
        yield ""


def _what(folder: ModelFolder, node: Node) -> Iterator[list[str]]:
    facts, config = node.facts, folder.config
    if node.stage == PRETRAIN.name and facts.get("model"):
        yield ["parts", facts["model"]]
    yield ["form", describe_form(folder)]
    if folder.kind == ADAPTER:
        yield ["base", code(_origin(node) or folder.base or "")]
    sizes = {"num_hidden_layers": "layers", "hidden_size": "wide", "num_attention_heads": "heads"}
    found = [f"{config[key]:,} {word}" for key, word in sizes.items() if isinstance(config.get(key), int)]
    if found:
        yield ["size", ", ".join(found)]
    for key, word in (("vocab_size", "vocabulary"), ("max_position_embeddings", "context")):
        if isinstance(config.get(key), int):
            yield [word, f"{config[key]:,} tokens"]
    parameters = count_parameters(folder.path)
    if parameters:
        yield ["numbers in the adapter" if folder.kind == ADAPTER else "parameters", f"{parameters:,}"]
    tokens = dict(_results(node)).get("train_tokens")
    if tokens:
        yield ["tokens seen in this stage", f"{tokens:,}"]


def _results(node: Node) -> list[tuple[str, Any]]:
    """Return what the model came to: of a checkpoint within a run, what was measured up to its step."""
    found = dict(_reached(node))
    if node.step is not None and node.run is not None:
        found = {}
        for row in node.run.metrics():
            if row.get("step", 0) <= node.step:
                found |= {key: value for key, value in row.items() if key not in OF_THE_STEP}
    return [(key, value) for key, value in found.items() if key not in NOT_SHOWN and isinstance(value, int | float)]


def _measured(node: Node) -> Iterator[list[str]]:
    """Yield a row for each number of the last evaluations of these very weights."""
    here = Path(node.place).resolve()
    for row in [row for row in node.evaluations if Path(row["checkpoint"]).resolve() == here][-3:]:
        data = ", ".join(code(item["path"]) for item in row.get("data") or ())
        for name, value in (row.get("results") or {}).items():
            if "second" not in name and isinstance(value, int | float):  # speed is the machine's
                yield [data, name, decimal(value), *meaning_of(name, PRETRAIN.name)]


def _is_proven(proof: Mapping[str, Any] | None, program: str) -> bool:
    checks = (proof or {}).get("checks") or ()
    return any(check["program"].startswith(program) and check["verdict"] == "proven" for check in checks)


def _proof(proof: Mapping[str, Any] | None) -> Iterator[str]:
    if not proof:
        return
    yield f"Loaded without LLM Lab and compared with the original model: **{VERDICTS[proof['verdict']]}**.\n"
    rows = []
    for check in proof.get("checks") or ():
        rest = check.get("reason") or ""
        if check.get("logit_difference") is not None:
            rest = (
                f"largest logit difference {check['logit_difference']:.2g} "
                f"(relative: {check['relative_logit_difference']:.2g}, allowed: {check['tolerance']:.2g}), "
                f"{100 * check['greedy_agreement']:.4g} % of {check['positions']:,} top tokens equal, "
                f"{check['texts_alike']} of {check['texts']} texts tokenized equally" + (f"; {rest}" if rest else "")
            )
        rows.append([check["program"], VERDICTS[check["verdict"]], check.get("loaded_as") or "", rest])
    yield from table(("program", "verdict", "loaded as", "numbers"), rows)


def _lineage(node: Node) -> Iterator[list[str]]:
    line = main_line(node)
    if len(line) < 2 and node.parent is None:
        return
    for one in line:
        origin = _origin(one) or ("scratch" if one.stage == PRETRAIN.name else "")
        yield [one.stage or "", code(_name(one)), code(origin) if origin else "", ", ".join(reached(_reached(one)))]


def _origin(node: Node) -> str | None:
    """Return what the model was made from, by its name."""
    if node.parent is None:
        return None
    return _name(node.parent.node) if node.parent.node else node.parent.place


def _name(node: Node) -> str:
    """Return what a model is called: its run, with the pipeline that it is a stage of, or its own name."""
    if node.run is None:
        return node.place
    path = node.run.path.resolve()
    return f"{path.parent.name}/{path.name}" if (path.parent / "run.json").is_file() else path.name


def _reached(node: Node) -> dict[str, Any]:
    return node.facts.get("results") or {}


def _making(node: Node) -> Iterator[str]:
    facts, results = node.facts, _reached(node)
    if node.run is None:
        return
    told = [f"Machine: {facts['machine']}." if facts.get("machine") else ""]
    told += [f"Time: {duration(results['wall_seconds'])}." if results.get("wall_seconds") else ""]
    told += [f"Versions: {versions(facts)}." if facts.get("versions") else ""]
    yield plain(" ".join(part for part in told if part)) + "\n"
    try:
        recipe = node.run.recipe_path.read_text(encoding="utf-8")
    except OSError:
        return
    yield "The recipe, which `llm-lab run` replays (paths of the machine that it ran on are cut to their last part):\n"
    yield fence(recipe.strip(), "yaml")


def _known_paths(node: Node) -> Iterator[str]:
    """Yield the paths that a run's record and recipe hold."""
    for one in main_line(node):
        yield from filter(is_absolute, texts_in([one.place, dict(one.facts), list(one.evaluations)]))
        if one.run is not None:
            yield str(one.run.path)
            try:
                yield from filter(is_absolute, texts_in(read_recipe_file(one.run.recipe_path)))
            except UserError:
                continue
