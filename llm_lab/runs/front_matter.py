"""What the Hub reads of a model card: its front matter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .lineage import Node, main_line
from .loading import ADAPTER, GGUF, LIBRARIES, ModelFolder

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
