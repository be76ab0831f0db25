"""Runs are listed with their sizes, deleted, renamed and tidied, with regard to what depends on them."""

import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

import pytest
from support.old_runs import copy_to, unpack
from support.screens import assert_matches_snapshot

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import find_base
from llm_lab.job import read_job
from llm_lab.run_result import Run
from llm_lab.runs.entries import list_entries
from llm_lab.runs.folder import RENAMING, RunFolder, find_checkpoint, find_model, find_run, list_runs, settle
from llm_lab.runs.housekeeping import find_leftovers, plan_removal, remove, rename_run, select
from llm_lab.runs.lineage import line_of, trace
from llm_lab.runs.lock import hold, this_process
from llm_lab.runs.manifest import find_damage, write_manifest
from llm_lab.terminal.run_list import print_runs, result_of
from llm_lab.web.run_index import RunIndex


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    return unpack(tmp_path_factory.mktemp("kept_runs"))


@pytest.fixture
def lab(unpacked, tmp_path, monkeypatch) -> Path:
    """A folder with the runs of an earlier release: a pipeline `life`, and `tiny` with models made from it."""
    monkeypatch.chdir(copy_to(tmp_path, unpacked))
    return tmp_path


def checkpoint(run: str, step: int) -> Path:
    folder = Path(f"checkpoints/{run}/steps/checkpoint-{step}")
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "weights").write_bytes(bytes(1000))
    return folder


def models_of(line) -> list[tuple[str, str]]:
    """Return (run, state of its parent) along a lineage."""
    return [(node.name, node.parent.state if node.parent else "") for node in line]


# --- the list


def test_the_list_shows_stage_size_age_status_and_result_and_can_be_filtered_and_sorted(lab, capsys):
    assert main(["list", "runs"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[:2] for line in said.splitlines() if line.startswith("tiny-sft ")] == [["tiny-sft", "sft"]]
    assert all(text in said for text in ("pipeline", "on disk", "8,848", "loss 4.1889"))
    assert main(["list", "runs", "--stage", "sft", "--sort", "name"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:-3]]
    assert names == ["life/sft", "tiny-sft"]
    assert main(["list", "runs", "--stage", "stf"]) == 2
    assert "Did you mean sft?" in capsys.readouterr().err
    assert main(["list", "data", "--stage", "sft"]) == 2


def test_a_sweep_stopped_before_its_first_run_is_listed_with_all_other_runs(lab, capsys):
    Path("checkpoints/early").mkdir()
    Path("checkpoints/early/sweep.json").write_text(json.dumps({"created_at": 1.0, "cells": []}))
    assert main(["list", "runs"]) == 0
    listed = capsys.readouterr().out
    assert "early" in listed
    assert "tiny-sft" in listed


def test_each_order_of_the_list_is_the_one_it_is_named_after(lab):
    entries = list_entries()
    select_by = lambda sort: select(entries, stage=None, status=None, text=None, sort=sort)  # noqa: E731
    assert select_by("disk")[0]["bytes"] == max(entry["bytes"] for entry in entries)
    assert select_by("size")[0]["parameters"] == max(entry["parameters"] or 0 for entry in entries)
    assert select_by("age")[0]["created_at"] == max(entry["created_at"] for entry in entries)
    losses = [entry["results"]["eval_loss"] for entry in select_by("result") if "eval_loss" in entry["results"]]
    assert losses == sorted(losses)
    assert len(losses) > 2
    assert {entry["name"] for entry in select(entries, stage=None, status="stopped", text=None)} == {
        "tiny-stopped", "tiny-dpo-stopped", "tiny-grpo-stopped",
    }  # fmt: skip


# --- names


def test_a_short_unique_prefix_names_a_run_and_an_ambiguous_one_lists_the_runs(lab, capsys):
    assert find_model("tiny-p") == Path("checkpoints/tiny-parts/model")
    assert find_model("checkpoints/tiny-p") == Path("checkpoints/tiny-parts/model")
    assert find_model("tiny") == Path("checkpoints/tiny/model")  # an exact name wins
    assert find_checkpoint("life/sf") == "checkpoints/life/sft/model"
    assert find_checkpoint("someone/life") == "someone/life"  # a name on the Hub
    assert find_checkpoint("gpt2") == "gpt2"
    with pytest.raises(UserError, match="tiny-dpo, tiny-dpo-stopped"):
        find_model("tiny-dp")
    assert main(["show", "tiny-p"]) == 0
    assert main(["check", "tiny-pa", "device=cpu"]) == 0
    assert main(["show", "tny"]) == 2
    assert "Did you mean tiny?" in capsys.readouterr().err


def test_a_short_prefix_in_a_recipe_is_written_in_full(lab):
    from llm_lab.job import check

    job = check({"stage": "eval", "device": "cpu", "model": {"checkpoint": "tiny-p"}})
    assert job.stages[0].recipe.model.checkpoint == "checkpoints/tiny-parts"
    job = check({"stage": "eval", "device": "cpu", "model": {"checkpoint": "tiny"}})
    assert job.stages[0].recipe.model.checkpoint == "checkpoints/tiny", "the whole name too"


# --- deleting


def test_a_removal_says_which_adapters_do_not_work_without_it_and_names_only_a_few_runs(lab):
    for number in range(9):
        run = RunFolder(Path(f"checkpoints/user-{number}"))
        run.path.mkdir()
        run.update(name=run.path.name, stage="sft", status="done", parent={"path": "checkpoints/tiny/model"})
        run.recipe_path.write_text("stage: sft\n")
        if number < 2:
            run.model_path.mkdir()
            base = {"base_model_name_or_path": str(Path("checkpoints/tiny/model").resolve())}
            (run.model_path / "adapter_config.json").write_text(json.dumps(base))
    adapters, others = plan_removal("tiny").notes[:2]
    assert adapters == (
        "3 adapters are trained on it, and do not work without it: "
        "checkpoints/tiny-sft, checkpoints/user-0, checkpoints/user-1"
    )
    assert "more runs made from it: checkpoints/" in others
    assert others.count("checkpoints/user-") <= 6
    assert " more; they can still be used, but their lineage and replay need checkpoints/tiny" in others


def test_a_removal_says_what_was_made_from_a_run_and_what_it_is_part_of(lab, capsys):
    said = " ".join(plan_removal("tiny").notes)
    assert "checkpoints/tiny-sft" in said
    assert "life" not in said
    said = " ".join(plan_removal("life/sft").notes)
    assert "checkpoints/life/merge" in said
    assert "part of the pipeline checkpoints/life" in said
    assert main(["rm", "tiny"]) == 2  # the user can't be asked
    assert main(["rm", "tiny-p", "--yes"]) == 2  # not the full name
    assert Path("checkpoints/tiny-parts").is_dir()
    assert main(["rm", "tiny", "life/sft", "--dry-run"]) == 0
    assert "Nothing was deleted" in capsys.readouterr().out
    assert Path("checkpoints/tiny").is_dir()
    assert main(["rm", "tiny", "life/sft", "--yes"]) == 0
    assert not Path("checkpoints/tiny").exists()
    assert not Path("checkpoints/life/sft").exists()
    assert Path("checkpoints/life/merge").is_dir()


def test_only_finished_runs_inside_checkpoints_are_deleted(lab):
    Path("mine").mkdir()
    Path("checkpoints/notes").mkdir()
    Path("checkpoints/link").symlink_to(lab / "mine")
    for name in (
        "mine",
        "checkpoints",
        ".",
        "checkpoints/notes",
        "checkpoints/link",
        "tiny/model",
        "checkpoints/../mine",
    ):
        with pytest.raises(UserError):
            plan_removal(name)
    RunFolder(Path("checkpoints/life/sft")).update(status="running", process=this_process())
    for name in ("life", "life/sft"):
        with pytest.raises(UserError, match="in progress"):
            plan_removal(name)
    removal = plan_removal("tiny")
    RunFolder(Path("checkpoints/tiny")).update(status="running", process=this_process())
    with pytest.raises(UserError, match="in progress"):
        remove(removal)
    assert Path("checkpoints/tiny/model").is_dir()


# --- what can be deleted without loss


def test_gc_keeps_the_first_the_last_two_milestones_and_what_another_run_was_made_from(lab, capsys, monkeypatch):
    monkeypatch.setenv("LLM_LAB_CACHE", str(lab / "cache"))
    run = RunFolder(Path("checkpoints/many"))
    run.path.mkdir()
    folders = {step: checkpoint("many", step) for step in range(10, 101, 10)}
    run.update(status="done", recipe={"train": {"save_total_limit": 50, "max_steps": 100}})
    child = RunFolder(Path("checkpoints/child"))
    child.path.mkdir()
    child.update(status="done", parent={"path": str(folders[20])})
    (lab / "cache" / "tokens" / "x").mkdir(parents=True)
    (lab / "cache" / "tokens" / "x" / "train.bin").write_bytes(bytes(5000))
    assert {int(one.path.name.split("-")[1]) for one in find_leftovers(["many"])} == {30, 40, 60, 70, 80}
    assert {one.bytes for one in find_leftovers(["many"])} == {1002}
    assert main(["gc", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "tokens of datasets" in printed
    assert "Nothing was deleted" in printed
    gone = "4.9 KiB checkpoints/many: 5 of 10 checkpoints, steps 30 to 80; 10, 20, 50, 90, 100 stay"
    assert gone in " ".join(printed.split())
    assert all(folder.is_dir() for folder in folders.values())
    assert main(["gc", "--yes"]) == 0
    assert [step for step, folder in folders.items() if folder.is_dir()] == [10, 20, 50, 90, 100]
    assert not (lab / "cache" / "tokens").exists()
    assert main(["gc", "many", "--keep", "1", "--yes"]) == 0
    assert [step for step, folder in folders.items() if folder.is_dir()] == [20, 100]


def test_gc_leaves_a_running_run_and_its_tokens_alone(lab, monkeypatch):
    monkeypatch.setenv("LLM_LAB_CACHE", str(lab / "cache"))
    (lab / "cache" / "tokens" / "x").mkdir(parents=True)
    run = RunFolder(Path("checkpoints/many"))
    run.path.mkdir()
    for step in range(10):
        checkpoint("many", step)
    run.update(status="running", process=this_process(), recipe={"train": {"save_total_limit": 50}})
    assert find_leftovers() == []


# --- renaming


def test_children_adapters_recipes_and_manifests_follow_a_renamed_run(lab):
    settings = Path("checkpoints/tiny-sft/steps/checkpoint-5")
    settings.mkdir(parents=True)
    (settings / "trainer_state.json").write_text("{}")
    config = json.loads(Path("checkpoints/tiny-sft/model/adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(lab / "checkpoints/tiny/model")
    (settings / "adapter_config.json").write_text(json.dumps(config))
    write_manifest(settings)
    Path("configs").mkdir()
    Path("configs/own.yaml").write_text("model: {checkpoint: tiny}\n# not tiny-sft\ndata: [{path: tiny}]\n")
    before = {
        name: models_of(line_of(trace(f"checkpoints/{name}", digest_of=digest))) for name in ("tiny-sft", "tiny-dpo")
    }
    rename_run("tiny", "first.model")
    for name, line in before.items():
        now = models_of(line_of(trace(f"checkpoints/{name}", digest_of=digest)))
        assert now == [
            (place.replace("checkpoints/tiny", "checkpoints/first.model", place == "checkpoints/tiny"), state)
            for place, state in line
        ]
        assert "gone" not in str(now)
        assert "checkpoints/first.model" in str(now)
    assert Path(find_base("checkpoints/tiny-sft/model")).resolve() == lab / "checkpoints/first.model/model"
    assert find_base(settings) == str(lab / "checkpoints/first.model/model")
    assert find_damage(settings) is None
    assert Path("configs/own.yaml").read_text() == (
        "model: {checkpoint: first.model}\n# not tiny-sft\ndata: [{path: tiny}]\n"
    )
    own = RunFolder(Path("checkpoints/first.model"))
    assert (own.facts()["name"], own.status()) == ("first.model", "done")
    assert "name: first.model\n" in own.recipe_path.read_text()
    assert not list(Path("checkpoints").glob(".*"))


def test_a_pipeline_is_renamed_with_its_stages_and_neither_a_stage_nor_a_running_child_is_touched(lab):
    rename_run("life", "whole-life")
    line = line_of(trace("checkpoints/whole-life/merge", digest_of=digest))
    assert [node.name for node in line if node.run] == [
        f"checkpoints/whole-life/{name}" for name in ("pretrain", "sft", "merge")
    ]
    for old, new in (("whole-life/sft", "x"), ("tiny", "tiny-sft"), ("tiny", "../x"), ("tiny", "a b"), ("nosuch", "x")):
        with pytest.raises(UserError):
            rename_run(old, new)
    RunFolder(Path("checkpoints/tiny-sft")).update(status="running", process=this_process())
    with pytest.raises(UserError, match="in progress"):
        rename_run("tiny", "x")


def kill_at_rename(number: int) -> None:
    """End this process as a kill does, right before it moves a file or folder for the given time."""
    left = itertools.count(number - 1, -1)
    sys.addaudithook(lambda event, _: os._exit(9) if event == "os.rename" and next(left) == 0 else None)


def test_a_rename_that_is_killed_at_any_moment_is_completed_by_the_next_command(lab):
    """The process is killed before each of its renames of files in turn, of which every change is made."""
    kills, name = 0, "tiny"
    while kills < 60:
        new = f"tiny{kills}"
        child = os.fork()
        if child == 0:
            kill_at_rename(kills + 1)
            rename_run(name, new)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert Path("checkpoints", RENAMING).exists() == (ended == 9 and kills > 0)
        settle()
        name = new if kills else name
        line = models_of(line_of(trace("checkpoints/tiny-sft", digest_of=digest)))
        assert line[0][0] == f"checkpoints/{name}"
        assert line[1][1] != "gone"
        assert RunFolder(Path("checkpoints", name)).facts()["name"] == name
        assert not Path("checkpoints", RENAMING).exists()
        if ended == 0:
            break
        kills += 1
    assert 5 < kills < 60


def find_by_recipe() -> None:
    Path("chats.yaml").write_text("stage: sft\nmodel: {checkpoint: checkpoints/tiny}\ndata: [{path: builtin:sums}]\n")
    job, _ = read_job("chats.yaml")
    assert job.stages[0].values["model"]["checkpoint"] == "checkpoints/little"


@pytest.mark.parametrize(
    "find",
    [
        pytest.param(lambda: find_model("little"), id="a model by its name"),
        pytest.param(lambda: find_run("litt"), id="a run by a prefix"),
        pytest.param(lambda: [run.path.name for run in list_runs()].index("little"), id="the wizard"),
        pytest.param(lambda: Run("checkpoints/little").facts["name"], id="Python"),
        pytest.param(lambda: [one["name"] for one in list_entries()].index("little"), id="the list of a command"),
        pytest.param(lambda: RunIndex().rows()["little"], id="the page"),
        pytest.param(find_by_recipe, id="a recipe"),
    ],
)
def test_every_lookup_of_runs_first_completes_a_killed_rename(find, lab):
    Path("checkpoints", RENAMING).write_text(json.dumps({"old": "tiny", "new": "little"}))
    found = find()
    assert found is None or "tiny" not in str(found)
    assert RunFolder(Path("checkpoints/little")).facts()["name"] == "little"
    assert not Path("checkpoints/tiny").exists()
    assert not Path("checkpoints", RENAMING).exists()


def test_no_process_completes_a_rename_on_which_another_one_works(lab):
    Path("checkpoints", RENAMING).write_text(json.dumps({"old": "tiny", "new": "little"}))
    with hold(Path("checkpoints")):
        assert "tiny" in [run.path.name for run in list_runs()]
    assert "little" in [run.path.name for run in list_runs()]


def test_the_command_and_the_wizard_list_runs_in_one_order(lab):
    assert list_runs()[0].path.name != "tiny"
    run = RunFolder(Path("checkpoints/tiny"))
    run.update(ended_at=time.time())  # an old run that was resumed
    assert list_runs()[0].path.name == "tiny"
    assert [entry["name"] for entry in list_entries()] == [run.path.name for run in list_runs()]


def digest(folder: Path | str) -> str:
    from llm_lab.hf.adapter import weights_digest

    return weights_digest(folder) or hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24), (120, 40)])
def test_the_list_matches_its_snapshot(columns, rows, lab, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    minutes, now = {"tiny": 3, "life": 200, "tiny-sft-merged-gguf": 9000}, time.time()
    entries = [{**one, "active_at": now - 60 * minutes.get(one["name"], 30_000)} for one in list_entries()]
    print_runs(select(entries, stage=None, status=None, text=None, sort="name"))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= columns
    assert_matches_snapshot(f"list-runs-{columns}x{rows}", lines)


@pytest.mark.parametrize("columns", range(60, 121, 6))
def test_no_column_of_the_list_is_cut(columns, lab, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    entries = [{**one, "name": f"{one['name']}-with-a-long-name"} for one in list_entries()]
    print_runs(entries)
    said = capsys.readouterr().out
    for entry in entries:
        assert result_of(entry) in said
        assert entry["status"] in said
    assert "-with-a-long-name" in said or columns < 100
