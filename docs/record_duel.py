"""Put a finished duel of configs/duels/duels.yaml on the page docs/duels.md: python docs/record_duel.py NAME FOLDER.

NAME@micro is the duel NAME with configs/duels/micro.yaml.
"""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from llm_lab.studies.duel import open_duel
from llm_lab.studies.grid import read_grid
from llm_lab.studies.results import summarize

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "duels.json"


def read_results(name: str, folder: str) -> dict[str, Any]:
    """Return the data of a duel for the page: the values of every seed, and the tokens of a run."""
    duel = open_duel(Path(folder).name, root=Path(folder).parent)
    known = yaml.safe_load((ROOT / "configs" / "duels" / "duels.yaml").read_text(encoding="utf-8"))
    ((key, values),) = read_grid([known[name.partition("@")[0]]["change"]]).values.items()
    assert list(duel.keys) == [key], f"{folder} compares {duel.keys}, not {key}"
    rows = {row.configuration.name: row for row in summarize(duel)}
    sides = [rows[one.name] for one in duel.configurations[:2]]
    assert all(row.n == len(duel.seeds) for row in sides), "runs are missing"
    return {
        "date": date.today().isoformat(),
        "measure": duel.measure,
        "tokens": round(sides[0].tokens),
        "sides": [
            {"value": value, "values": {str(seed): loss for seed, loss in row.values.items()}}
            for value, row in zip(values, sides, strict=True)
        ],
    }


if __name__ == "__main__":
    name, folder = sys.argv[1:]
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[name] = read_results(name, folder)
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
