"""A run resumes only from a complete checkpoint, and only with its original inputs."""

import shutil
from pathlib import Path

import pytest

from llm_lab.errors import UserError
from llm_lab.estimate.adapter_base import settings_digest, weights_digest
from llm_lab.runs.folder import RunFolder, create_run
from llm_lab.runs.lineage import file_digest
from llm_lab.runs.manifest import write_manifest
from llm_lab.runs.resume import (
    Batch,
    batch_to_resume,
    require_resume_point,
    require_same_beginning,
    resume_command,
    set_aside_after,
)


@pytest.fixture
def run(in_tmp_path) -> RunFolder:
    run = create_run("a")
    run.update(name="a", stage="sft", status="stopped", manifests_from_step=0)
    for step in (10, 20, 30):
        folder = run.steps_path / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(f"{step}")
        (folder / "optimizer.pt").write_bytes(b"moments")
        write_manifest(folder)
    return run


def write_model(folder: str) -> Path:
    path = Path(folder)
    path.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (path / name).write_text(name)
    return path


def record_of(path: Path) -> dict:
    return {"path": str(path), "digest": weights_digest(path), "settings": settings_digest(path)}


def test_the_newest_checkpoint_that_is_complete_is_offered(run):
    assert require_resume_point(run) == (30, [])
    for step in (30, 20):
        (run.steps_path / f"checkpoint-{step}" / "optimizer.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoint-30/optimizer.pt: is missing.*step 10, .*--resume-from 10"):
        require_resume_point(run)
    with pytest.raises(UserError, match=r"checkpoint-20/optimizer.pt: is missing.*step 10, .*--resume-from 10"):
        require_resume_point(run, 20)
    assert require_resume_point(run, 10) == (10, [])
    assert require_resume_point(run, 0) == (0, [])
    with pytest.raises(
        UserError, match=r"--resume-from = 15: checkpoints/a has no checkpoint of this step.*10, 20, 30"
    ):
        require_resume_point(run, 15)


def test_a_stage_of_a_pipeline_is_resumed_with_the_command_of_the_pipeline(run):
    outer = create_run("both")
    outer.update(stages=["a"])
    inside = RunFolder(Path(shutil.move(run.path, outer.path / "a")))
    assert resume_command(inside) == "llm-lab run checkpoints/both/recipe.yaml --resume"


def test_checkpoints_after_a_step_are_set_aside_and_never_lost(run):
    run.model_path.mkdir()
    aside = set_aside_after(run, 20)
    assert [path.name for path in aside] == ["checkpoint-30.set-aside", "model.set-aside"]
    assert [step for step, _ in run.checkpoints()] == [10, 20]
    (run.steps_path / "checkpoint-30").mkdir()
    (run.steps_path / "checkpoint-30" / "trainer_state.json").touch()
    assert [path.name for path in set_aside_after(run, 20)] == ["checkpoint-30.set-aside-2"]
    assert set_aside_after(run, 20) == []


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("key", ["parent", "dpo.reference", "tokenizer"])
def test_a_changed_model_is_named_wherever_the_run_uses_it(run, key, file):
    model = write_model("base")
    record = record_of(model)
    run.update(**({"parent": record} if key == "parent" else {"references": {key: record}}))
    require_same_beginning(run)
    (model / file).write_text("changed")
    named = "model.checkpoint" if key == "parent" else key
    with pytest.raises(UserError, match=f"{named} = base: its (weights|files) have changed since the run"):
        require_same_beginning(run)


def test_a_model_that_moved_together_with_the_run_is_found_and_compared(run):
    model = write_model("checkpoints/base")
    run.update(parent=record_of(model.resolve()))
    Path("elsewhere").mkdir()
    shutil.move("checkpoints", "elsewhere")
    moved = RunFolder(Path("elsewhere/checkpoints/a"))
    require_same_beginning(moved)
    Path("elsewhere/checkpoints/base/model.safetensors").write_text("changed")
    with pytest.raises(UserError, match="its weights have changed"):
        require_same_beginning(moved)


def test_changed_files_are_listed_together(run):
    for name in ("mine.py", "asked.jsonl"):
        Path(name).write_text("before")
    files = {"rewards.0.python": "mine.py", "score.path": "asked.jsonl"}
    run.update(references={key: {"path": name, "digest": file_digest(name)} for key, name in files.items()})
    require_same_beginning(run)
    for name in files.values():
        Path(name).write_text("after")
    with pytest.raises(UserError) as caught:
        require_same_beginning(run)
    assert [problem.key for problem in caught.value.problems] == list(files)


def test_a_run_resumes_in_as_many_processes_as_can_share_its_steps(run, monkeypatch):
    run.update(processes=2, recipe={"train": {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}})
    require_same_beginning(run)
    assert batch_to_resume(run, Batch(3, 1)) == (Batch(3, 2), 2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"--nproc = 4: 4 processes can't share the sequences .* Resume with --nproc 2"):
        require_same_beginning(run)
    assert resume_command(run).endswith("--resume --nproc 4")
    # It has continued in one process, with a smaller batch.
    run.update(batch={"rows": 1, "batches": 6, "from_step": 5, "processes": 1})
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert batch_to_resume(run, Batch(3, 1)) == (Batch(1, 2), 1)


@pytest.mark.parametrize(
    ("batch", "before", "now", "shared"),
    [
        (Batch(4, 1), 2, 1, Batch(4, 2)),
        (Batch(4, 2), 1, 2, Batch(4, 1)),
        (Batch(4, 1), 1, 2, Batch(2, 1)),
        (Batch(6, 1), 2, 4, Batch(3, 1)),
        (Batch(3, 1), 1, 2, None),
        (Batch(6, 1), 1, 4, None),
    ],
)
def test_the_rows_of_a_step_are_shared_evenly_or_not_at_all(batch, before, now, shared):
    assert batch.shared(before, now) == shared
