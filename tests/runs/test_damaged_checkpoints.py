"""Whatever happens to a file of the newest checkpoint, a resume names it and offers the checkpoint before."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_recipe, write_text
from support.damage import KINDS, damage, trials
from support.post_runs import post_recipe, weights_of, write_base

from llm_lab.errors import UserError
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder


def try_damage(raw: dict[str, Any], count: int, *, resumed: int = 1) -> Counter:
    """Damage the newest checkpoint of a finished run `count` times; returns how many of each kind were found.

    resumed: how many of the trials resume as the error suggests, and must end with the weights of the undisturbed run.
    """
    folder = RunFolder(Path("checkpoints") / raw["name"])
    (before, _), (_, newest) = folder.checkpoints()[-2:]
    expected, found = weights_of(str(folder.path)), Counter()
    shutil.copytree("checkpoints", "undamaged")
    for number, (file, kind, draw) in enumerate(trials(newest, count)):
        damage(file, kind, draw)
        with pytest.raises(UserError) as caught:
            run(raw, resume=True)
        (problem,) = caught.value.problems
        offer = f"Resume from the checkpoint of step {before}, which is complete: "
        assert problem.key == str(file), (kind, str(problem))
        assert problem.fix == f"{offer}llm-lab run {folder.recipe_path} --resume-from {before}"
        found[kind] += 1
        if number % max(1, count // resumed) == 0:
            assert run(raw, resume_from=before)["status"] == "done"
            after = weights_of(str(folder.path))
            assert all(torch.equal(tensor, after[name]) for name, tensor in expected.items()), (file, kind)
        shutil.rmtree("checkpoints")
        shutil.copytree("undamaged", "checkpoints")
    return found


def test_damage_to_any_file_is_found(finished_run):
    write_text("text.txt")
    files = len(list((Path("checkpoints/tiny/steps/checkpoint-20")).iterdir()))
    assert try_damage(tiny_recipe(), files).total() == files


@pytest.mark.slow
def test_two_hundred_damages_to_checkpoints_of_three_stages_are_found(finished_run, capsys):
    """Prints the figures for benchmarks/RESULTS.md."""
    write_text("text.txt")
    write_base()
    rows = []
    lora = post_recipe("sft", lora={"r": 2}, **{"train.save_steps": 2})
    ppo = post_recipe("ppo", **{"train.save_steps": 1, "train.max_steps": 3, "train.eval_steps": 3})
    for raw in (tiny_recipe(), lora, ppo):
        if raw["stage"] != "pretrain":
            shutil.rmtree("checkpoints")
            run(raw)
        shutil.rmtree("undamaged", ignore_errors=True)
        found = try_damage(raw, 67, resumed=4)
        files = len(list(RunFolder(Path("checkpoints") / raw["name"]).checkpoints()[-1][1].iterdir()))
        rows.append(
            f"| {raw['stage']} | {files} | {' | '.join(str(found[kind]) for kind in KINDS)} | {found.total()} |"
        )
    with capsys.disabled():
        print("", f"| stage | files | {' | '.join(KINDS)} | found |", *rows, sep="\n")  # noqa: T201
