"""Runs of release 0.1.0: this version lists, shows, resumes, replays, compares, evaluates and exports them."""

import json
from pathlib import Path

import pytest
from support.old_runs import PAIRS, computes_same_bits, copy_to, read_metrics, read_weights, unpack

from llm_lab.cli import main
from llm_lab.job import check
from llm_lab.recipe.files import read_recipe_file

TRAINED = ["tiny", "tiny-parts", "tiny-sft", "tiny-dpo", "tiny-grpo"]
WEIGHED_OTHERWISE = "tiny-dpo"  # its SFT loss was the mean of each batch; now every token has the same weight
DRAWN_OTHERWISE = "tiny-grpo"  # each token used the next random number; now it uses that of its row and position
STOPPED = [f"{name}-stopped" for name in PAIRS]
RUNS = [*TRAINED, *STOPPED, "tiny-sft-merged", "tiny-sft-merged-hf", "tiny-sft-merged-gguf", "life"]
STAGES = ["life/pretrain", "life/sft", "life/merge"]
PARAMETERS = {  # of runs without the chat tokens, and of another architecture
    **dict.fromkeys(("tiny", "tiny-stopped", "tiny/model", "tiny/steps/checkpoint-20", "life/pretrain"), 8800),
    "tiny-parts": 9904,
}
QUESTION = "Tom has 3 nuts. Then he finds 4 more. How many?"
# What 0.1.0 measured with `compare --data builtin:stories`.
LOSSES = {
    "tiny": 4.149208025075495,
    "tiny-sft": 4.163514238316566,
    "tiny-dpo": 4.133002670947462,
    "tiny-grpo": 4.264018806628883,
}
ANSWER = "k�ll�␝f [(h�=rn␆kcs_9m3s\n"  # of tiny-sft to QUESTION, sampled with seed 2


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory) -> Path:
    return unpack(tmp_path_factory.mktemp("old_runs"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory) -> Path:
    """Token files of the built-in data, written once."""
    return tmp_path_factory.mktemp("old_runs_cache")


@pytest.fixture(autouse=True)
def lab(unpacked, shared_cache, tmp_path, monkeypatch) -> Path:
    """The folder of a test: a copy of the runs, away from the paths that they recorded."""
    monkeypatch.setenv("LLM_LAB_CACHE", str(shared_cache))
    monkeypatch.chdir(copy_to(tmp_path, unpacked))
    return tmp_path


def words(text: str) -> str:
    return " ".join(text.split())


def recorded_values(name: str) -> dict:
    """Return a run's recipe.yaml, with the tolerance that a merge derives once its adapter exists."""
    values = read_recipe_file(Path(f"checkpoints/{name}/recipe.yaml"))
    for stage in values.get("stages", [values]):
        if stage["stage"] == "merge":
            stage["merge"] = {"tolerance": 1e-4}  # null in a pipeline: the adapter did not exist yet
    return values


def of_that_release(values: object, recorded: object) -> object:
    """Return values without the keys that were added to recipes after that release."""
    if isinstance(values, dict) and isinstance(recorded, dict):
        return {key: of_that_release(value, recorded[key]) for key, value in values.items() if key in recorded}
    if isinstance(values, list) and isinstance(recorded, list) and len(values) == len(recorded):
        return [of_that_release(*both) for both in zip(values, recorded, strict=True)]
    return values


def prefixes_of_trained_stages(values: dict) -> list[str]:
    """Return the prefix of the keys of each stage that trains: none, or stages.0. and so on in a pipeline."""
    stages = {f"stages.{number}.": stage for number, stage in enumerate(values["stages"])} if "stages" in values else {}
    return [prefix for prefix, stage in (stages or {"": values}).items() if "train" in stage]


def is_close(value: float) -> object:
    """The recorded value: exact where this machine computes the same bits, otherwise to 0.1 %."""
    return value if computes_same_bits() else pytest.approx(value, rel=1e-3)


def test_list_shows_every_run_with_its_status(capsys):
    assert main(["list", "runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in RUNS:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert ("stopped" if name in STOPPED else "done") in line.split()


@pytest.mark.parametrize("name", [*RUNS, *STAGES, "tiny/steps/checkpoint-20", "tiny/model"])
def test_show_describes_a_run_and_its_lineage(name, capsys):
    assert main(["show", f"checkpoints/{name}"]) == 0
    text = words(capsys.readouterr().out)
    assert "gone" not in text
    assert "have changed" not in text
    assert f"checkpoints/{name.partition('/')[0]}" in text
    assert "builtin:sums" in text
    if "gguf" not in name:
        base = PARAMETERS.get(name, 8848)
        assert f"parameters {base:,} " in text


def test_show_finds_the_base_of_an_adapter_that_moved_with_it(lab, capsys):
    for name, base in {
        "tiny-sft": "tiny",
        "tiny-grpo": "tiny-sft-merged",
        "tiny-grpo-stopped": "tiny-sft-merged",
        "life/sft": "life/pretrain",
    }.items():
        assert main(["show", f"checkpoints/{name}"]) == 0
        text = "".join(capsys.readouterr().out.split())
        assert f"base{lab.resolve()}/checkpoints/{base}/model" in text
        assert "260entries" in text


@pytest.mark.parametrize("name", [*(name for name in RUNS if "gguf" not in name), *STAGES])
def test_the_recipe_of_a_run_validates_and_resolves_to_itself(name):
    recipe = f"checkpoints/{name}/recipe.yaml"
    assert main(["check", recipe]) == 0
    recorded = recorded_values(name)
    assert of_that_release(check(recipe).values(), recorded) == recorded


@pytest.mark.parametrize("name", [*TRAINED, "life"])
def test_a_recipe_of_that_release_derives_the_same_values(name):
    recorded = recorded_values(name)
    recipe = f"recipes/{name}.yaml"
    # Its default was the last 3; now it is 4: the last two and two earlier ones.
    keep_three = [f"{prefix}train.save_total_limit=3" for prefix in prefixes_of_trained_stages(recorded)]
    assert of_that_release(check(recipe, keep_three).values(), recorded) == recorded


@pytest.mark.parametrize("name", PAIRS)
def test_a_stopped_run_resumes_to_the_undisturbed_run_bit_for_bit(name):
    stopped, whole = Path(f"checkpoints/{name}-stopped"), Path(f"checkpoints/{name}")
    before = read_metrics(stopped)
    assert main(["run", f"{stopped}/recipe.yaml", "--resume"]) == 0
    facts = json.loads((stopped / "run.json").read_text())
    assert (facts["status"], facts["results"]["step"]) == ("done", PAIRS[name])
    rows, expected = read_metrics(stopped), read_metrics(whole)
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    if name == WEIGHED_OTHERWISE:
        assert rows[-1]["eval_loss"] == pytest.approx(expected[-1]["eval_loss"], rel=0.05)
    elif name == DRAWN_OTHERWISE:
        assert rows[: len(before)] == expected[: len(before)]
    elif computes_same_bits():
        assert rows == expected
        assert read_weights(stopped) == read_weights(whole)
        assert (stopped / "samples.md").read_text() == (whole / "samples.md").read_text()
    else:
        assert rows[-1]["eval_loss"] == is_close(expected[-1]["eval_loss"])


@pytest.mark.parametrize("name", [*TRAINED, "tiny-stopped", "tiny-sft-merged-hf", "life"])
def test_a_dry_run_of_a_replay_writes_the_recipe_of_the_lineage(name, capsys):
    assert main(["replay", f"checkpoints/{name}", "--dry-run"]) == 0
    (recipe,) = Path("configs").glob("*-replay.yaml")
    stages = {"tiny-sft": 2, "tiny-dpo": 4, "tiny-grpo": 4, "tiny-sft-merged-hf": 4, "life": 3}.get(name, 1)
    assert len(read_recipe_file(recipe)["stages"]) == stages
    assert main(["check", str(recipe)]) == 0


def test_a_replay_gives_equal_weights(capsys):
    assert main(["replay", "checkpoints/tiny-parts", "--name", "again"]) == 0
    if computes_same_bits():
        assert "Identical: all weights in checkpoints/again" in words(capsys.readouterr().out)
        assert read_metrics(Path("checkpoints/again/tiny-parts")) == read_metrics(Path("checkpoints/tiny-parts"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "pretrained", "tuned"),
    [("life", "life/pretrain", "life/sft"), ("tiny-grpo", "tiny", "tiny-sft")],
)
def test_a_replay_of_several_stages_gives_what_that_release_gave(name, pretrained, tuned, capsys):
    assert main(["replay", f"checkpoints/{name}", "--name", "again"]) == 0
    again = Path("checkpoints/again")
    if computes_same_bits():
        assert read_weights(again / Path(pretrained).name) == read_weights(Path("checkpoints", pretrained))
    # Rows padded on the right had a mask in that release. Without one, attention adds in a different order.
    rows, recorded = read_metrics(again / Path(tuned).name), read_metrics(Path("checkpoints", tuned))
    for key in ("loss", "eval_loss"):
        expected = [row[key] for row in recorded if key in row]
        assert expected
        assert [row[key] for row in rows if key in row] == pytest.approx(
            expected, rel=1e-5 if computes_same_bits() else 1e-3
        )
    if name == DRAWN_OTHERWISE:
        facts = json.loads((again / name / "run.json").read_text())
        assert (facts["status"], facts["results"]["step"]) == ("done", PAIRS[name])


def test_compare_gives_the_figures_of_that_release(capsys):
    models = [f"checkpoints/{name}" for name in LOSSES]
    options = ["--data", "builtin:stories", "--prompt", QUESTION, "--max-new-tokens", "2", "--out", "compare.json"]
    assert main(["compare", *models, *options]) == 0
    found = json.loads(Path("compare.json").read_text())["models"]
    losses = {Path(model["name"]).name: model["numbers"]["loss:builtin:stories"] for model in found}
    assert losses == {name: is_close(loss) for name, loss in LOSSES.items()}


def test_compare_reads_the_steps_of_a_run_and_an_adapter_without_its_base(capsys):
    assert main(["compare", "checkpoints/tiny", "--steps", "--prompt", "Tom has", "--max-new-tokens", "2"]) == 0
    text = words(capsys.readouterr().out)
    assert "step 20 4.6122 4.5658" in text
    assert "step 40 4.1953 4.1889" in text
    assert main(["compare", "checkpoints/tiny-sft", "--adapter-off", "--prompt", "Tom", "--max-new-tokens", "2"]) == 0


def test_eval_measures_the_same_figures_and_adds_them_to_the_report(capsys):
    run = Path("checkpoints/tiny")
    before = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    overrides = ["eval.speed_tokens=0", "eval.max_tokens=2048"]
    assert main(["eval", str(run), "--data", "builtin:stories", *overrides]) == 0
    *kept, now = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert kept == before
    assert now["data"] == before[-1]["data"]
    for key in ("eval_loss", "perplexity", "bits_per_byte"):
        assert now["results"][key] == is_close(before[-1]["results"][key])
    report = (run / "report.md").read_text()
    assert report.count("builtin:stories") > 1
    assert "4.1398" in report


@pytest.mark.parametrize("name", ["tiny-sft-merged", "tiny-sft", "tiny-parts"])
def test_a_dry_run_of_an_export_lists_its_files(name, capsys):
    assert main(["export", f"checkpoints/{name}", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "model.safetensors" in text
    assert ("modeling_lab.py" in text) == (name == "tiny-parts")


def test_a_dry_run_of_an_export_to_gguf_names_its_file(capsys):
    assert main(["export", "checkpoints/tiny-sft-merged", "--to", "gguf", "--dry-run"]) == 0
    assert "tiny-sft-merged-f32.gguf" in capsys.readouterr().out


def test_chat_gives_the_answer_of_that_release(capsys):
    options = ["--prompt", QUESTION, "--seed", "2", "--temperature", "1", "--max-new-tokens", "24"]
    assert main(["chat", "checkpoints/tiny-sft", *options]) == 0
    answer = capsys.readouterr().out
    assert answer.strip()
    if computes_same_bits():
        assert answer == ANSWER
