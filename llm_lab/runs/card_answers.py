"""What only a person knows about a model, for its card: author, license, intended use and limitations, asked once.

card.yaml in checkpoints/ holds the answers for all models, and card.yaml in a run's folder those for one model. Both
are read whenever a card is written; `llm-lab export --author ... --license ...` writes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from llm_lab.errors import Problem, UserError
from llm_lab.safe_text import one_line

from .disk import write_atomically
from .folder import ROOT, RunFolder

FILE = "card.yaml"
OF_ALL_MODELS = ("author", "license")
OF_ONE_MODEL = ("intended_use", "limitations")
KEYS = (*OF_ALL_MODELS, *OF_ONE_MODEL)
# Licenses that the Hub knows by these names; for others it uses "other" and a license name.
LICENSES = (
    *("apache-2.0", "mit", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "unlicense"),
    *(
        "openrail",
        "bigscience-openrail-m",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "mpl-2.0",
    ),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "wtfpl", "zlib", "odc-by", "pddl"),
)


def read_answers(run: RunFolder | None, *, root: Path = ROOT) -> dict[str, str]:
    """Return the answers for the model of a run (or of none), including those for all models. UserError as in _read."""
    folders = [root]
    if run is not None:
        outer = run.path.parent  # if the run is a stage: its pipeline
        folders += [*([outer] if (outer / "run.json").is_file() else []), run.path]
    found: dict[str, str] = {}
    for folder in folders:
        found |= _read(folder / FILE)
    return found


def keep_answers(answers: Mapping[str, str | None], run: RunFolder | None, *, root: Path = ROOT) -> None:
    """Store answers for the next cards: author and license for all models, the others for that of the run.

    None leaves an answer unchanged, "" removes it.
    """
    for keys, folder in ((OF_ALL_MODELS, root), (OF_ONE_MODEL, run.path if run else root)):
        given = {key: value for key in keys if (value := answers.get(key)) is not None}
        if given:
            kept = {key: text for key, text in (_read(folder / FILE) | given).items() if text}
            write_atomically(folder / FILE, yaml.safe_dump(kept, sort_keys=False, allow_unicode=True))


def license_facts(license: str) -> dict[str, str]:
    """Return the front matter of a license."""
    name = license.lower().replace(" ", "-")
    return {"license": name} if name in LICENSES else {"license": "other", "license_name": name}


def _read(path: Path) -> dict[str, str]:
    """Read a file of answers. UserError if it is not one."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _bad(path, f"can't be read ({one_line(str(error))})") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _bad(path, "must be a mapping of names to strings")
    if unknown := [key for key in found if key not in KEYS]:
        raise _bad(path, f"has an unknown key, {one_line(str(unknown[0]))}")
    return found


def _bad(path: Path, why: str) -> UserError:
    return UserError(Problem(str(path), why, allowed=", ".join(KEYS), fix="Correct the file or delete it."))
