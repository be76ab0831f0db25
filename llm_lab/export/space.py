"""A Hugging Face Space: a folder with a model, a Gradio app that chats with it, a card and the requirements."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from llm_lab.estimate.formatting import count
from llm_lab.estimate.model_library import find_in_library
from llm_lab.estimate.parameters import context_in, read_config_json
from llm_lab.runs.card import hub_base
from llm_lab.runs.card_answers import license_facts, read_answers
from llm_lab.runs.disk import write_atomically
from llm_lab.runs.folder import run_of
from llm_lab.runs.lineage import trace
from llm_lab.runs.loading import count_parameters
from llm_lab.runs.markdown import plain, table
from llm_lab.safe_text import redact

MODEL, APP, FACTS, CARD, REQUIREMENTS = "model", "app.py", "space.json", "README.md", "requirements.txt"
GRADIO = "6.31.0"  # the version that the app was tested with
_SOURCE = Path(__file__).with_name("space_app.py")


def space_files() -> list[tuple[str, int | None]]:
    """Return (name, bytes or None) of the files of a Space, without its model."""
    return [(APP, _SOURCE.stat().st_size), (FACTS, None), (REQUIREMENTS, None), (CARD, None)]


def write_space(folder: Path, *, source: str, name: str, own_code: bool, merged: bool) -> None:
    """Write the app, its facts, its requirements and its card around the model in folder/model.

    source: the folder of the weights (or a name on the Hub) that the model was made from. own_code: the model comes
    with code, which the app trusts. merged: a LoRA adapter was merged into it.
    """
    model = folder / MODEL
    base = hub_base(trace(source, digest_of=lambda path: None))
    known = find_in_library(base) if base else None
    own = read_answers(run_of(source) if Path(source).is_dir() else None).get("license")
    license = own or (known.license if known else None)
    context = context_in(read_config_json(model) or {})
    facts: dict[str, Any] = {
        "title": name,
        "description": "A language model made with LLM Lab. It can be wrong.",
        "own_code": own_code,
        "context": context,
    }
    shutil.copyfile(_SOURCE, folder / APP)
    write_atomically(folder / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / REQUIREMENTS, "\n".join(_requirements()) + "\n")
    card = _front_matter(name, base, license) + "\n".join(_body(model, facts, base, license, merged))
    write_atomically(folder / CARD, redact(card))


def _requirements() -> Iterator[str]:
    """Yield the app's packages. Transformers: the version that the export was verified with, or a later one."""
    yield f"gradio=={GRADIO}"
    yield "torch"
    major = int(version("transformers").partition(".")[0])
    yield f"transformers>={version('transformers')},<{major + 1}"


def _front_matter(name: str, base: str | None, license: str | None) -> str:
    """Return the block of YAML for the Hub, at the start of the card."""
    facts: dict[str, Any] = {"title": name, "emoji": "💬", "colorFrom": "blue", "colorTo": "indigo"}
    facts |= {"sdk": "gradio", "sdk_version": GRADIO, "app_file": APP, "pinned": False}
    facts |= license_facts(license) if license else {}
    facts |= {"models": [base]} if base else {}
    facts["tags"] = ["llm-lab"]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def _body(model: Path, facts: dict[str, Any], base: str | None, license: str | None, merged: bool) -> Iterator[str]:
    yield f"# {plain(facts['title'])}\n"
    yield "A chat with a language model made with LLM Lab. The model is in `model/`, with a card of its own.\n"
    parameters = count_parameters(model)
    rows = [("parameters", f"{parameters:,} ({count(parameters)})")] if parameters else []
    rows += [("context", f"{facts['context']:,} tokens")] if facts["context"] else []
    rows += [("made from", base)] if base else []
    rows += [("license", license)] if license else []
    yield from table(("model", ""), rows)
    yield ""
    if license is None:
        yield "The license is not known here. Set `license:` above, to what the models and data that it was made from"
        yield "allow.\n"
    if merged:
        yield "It was trained as a LoRA adapter, which was merged into its base for this Space.\n"
    if facts["own_code"]:
        yield "**The model has code of its own**, in `model/*.py`: `app.py` loads it with `trust_remote_code=True`,"
        yield "which runs that code. It is part of this repository, so what you see is what runs.\n"
    yield "## Run it here\n"
    yield "```\npip install -r requirements.txt\npython app.py\n```\n"
    yield "## Publish it\n"
    yield "```\nhf upload OWNER/NAME . --repo-type space\n```\n"
    yield "The free hardware of a Space is a CPU, where small models answer fastest. With a GPU, the app uses it."
