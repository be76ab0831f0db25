"""What a sweep will run: the grid, its recipes, and what is refused before anything runs."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import tiny_recipe, write_text
from support.post_runs import post_recipe, write_base

from llm_lab.cli import main
from llm_lab.commands.arguments import PRESETS as NAMED
from llm_lab.errors import UserError
from llm_lab.estimate.formatting import about
from llm_lab.studies.cells import START_SECONDS, CellState, _Work, run_seconds, seconds_left
from llm_lab.studies.grid import read_grid, short_keys, split_values
from llm_lab.studies.presets import PRESETS
from llm_lab.studies.sweep import SEEDS_OF_PRESET, open_sweep, plan_sweep
from llm_lab.studies.sweep_report import cost_of_a_seed, how_to_read, plan_rows, what_is_missing
from llm_lab.studies.verdict import MIN_SEEDS

ROOT = Path(__file__).resolve().parents[2]
RATES = "optimizer.learning_rate=0.01,0.02"


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def refused(*words: str, recipe: dict | None = None, **options) -> str:
    """Return why a sweep is refused."""
    with pytest.raises(UserError) as error:
        plan_sweep(recipe or tiny_recipe(), words, **options)
    assert not Path("checkpoints").exists()
    return str(error.value)


def test_a_comma_inside_brackets_and_quotes_belongs_to_its_value():
    assert split_values("[0.9, 0.95],[0.9, 0.99]") == ["[0.9, 0.95]", "[0.9, 0.99]"]
    assert split_values("{name: muon, learning_rate: 0.1},{name: adamw}") == [
        "{name: muon, learning_rate: 0.1}",
        "{name: adamw}",
    ]
    assert split_values("'a,b',c") == ["'a,b'", "c"]
    assert read_grid(["optimizer.betas=[0.9,0.95]"]).values == {}


def test_every_combination_of_values_is_one_recipe_and_the_seeds_are_the_same_for_all():
    sweep = plan_sweep(tiny_recipe(), [RATES, "model.norm=rmsnorm,layernorm", "train.max_steps=7"], seeds=2)
    cells = sweep.cells_to_run()
    found = {
        (r["optimizer"]["learning_rate"], r["model"]["norm"], r["seed"], r["train"]["max_steps"])
        for r in (cell.recipe for cell in cells)
    }  # fmt: skip
    assert found == {(r, n, s, 7) for r in (0.01, 0.02) for n in ("rmsnorm", "layernorm") for s in (1337, 1338)}
    assert cells[0].folder == Path(
        "checkpoints/tiny-sweep-learning_rate-norm/learning_rate=0.01-norm=rmsnorm-seed=1337"
    )
    assert [cell.seed for cell in cells] == [1337] * 4 + [1338] * 4


def test_items_of_a_list_and_whole_groups_can_be_compared():
    write_text("other.txt", seed=1)
    recipe = tiny_recipe()
    recipe["data"].append({"path": "other.txt"})
    weights = plan_sweep(recipe, ["data.0.weight=1.0,3.0"])
    assert [cell.recipe["data"][0]["weight"] for cell in weights.cells()] == [1.0, 3.0]
    groups = plan_sweep(tiny_recipe(), ["optimizer={name: muon, learning_rate: 0.015},{name: lion}"])
    assert [cell.recipe["optimizer"]["name"] for cell in groups.cells()] == ["muon", "lion"]
    names = [cell.name for cell in groups.cells()]
    assert names == ["optimizer=muon-learning_rate-0.015-seed=1337", "optimizer=lion-seed=1337"]


def test_another_optimizer_does_not_get_the_learning_rate_of_the_recipes_own():
    """The shipped recipe has two learning rates for Muon; the command works as a user would type it."""
    sweep = plan_sweep(
        ROOT / "configs" / "duels" / "optimizers.yaml",
        ["optimizer.name=adamw,muon,lion,sophia,adafactor", "data.0.path=text.txt"],
        seeds=3,
    )
    rates = {name: job.stages[0].values["optimizer"]["learning_rate"] for name, job in sweep.jobs.items()}
    assert rates["optimizer=muon"] == 0.015
    assert rates["optimizer=adamw"] == 0.001
    assert rates["optimizer=lion"] == 0.0002
    assert len(sweep.cells_to_run()) == 15
    assert "optimizer.learning_rate = 0.015" in sweep.remarks[0]
    assert "muon" in sweep.remarks[0]


def test_a_learning_rate_that_is_given_with_the_other_optimizer_is_used():
    sweep = plan_sweep(tiny_recipe(), ["optimizer.learning_rate=0.0003,0.001", "optimizer.name=lion"])
    assert [cell.recipe["optimizer"] for cell in sweep.cells()] == [
        {"name": "lion", "learning_rate": 0.0003},
        {"name": "lion", "learning_rate": 0.001},
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no key with several values is given"),
        (["optimizer.learning_rate=0.01"], "this key has one. List them with commas"),
        (["optimizer.learning_rate=[0.01,0.02]"], "Without brackets, each is a separate value"),
        (["optimizer.learning_rate=0.01,,0.02"], "one of the values is empty"),
        (["optimizer.learning_rate=0.01,0.01"], "0.01 is listed twice"),
        (["optimizer.learning_rate=1e-2,0.01"], "1e-2 and 0.01 are the same value"),
        ([RATES, "optimizer.learning_rate=0.03,0.04"], "the key is given twice"),
        ([RATES, "optimizer.learning_rate=0.03"], "with one value and with several"),
        (["seed=1,2,3"], "Use 3 seeds"),
        (["name=a,b"], "a name has no effect"),
        (["optimizer.lerning_rate=0.01,0.02"], "Did you mean learning_rate?"),
        (["optimizer.learning_rate=0.01,fast"], "With learning_rate=fast: optimizer.learning_rate = fast"),
        (["model.rope_theta=100.0,200.0", "model.position_embedding=alibi"], "has no effect with"),
        (["model.num_key_value_heads=1,2", "model.attention=mqa"], "num_key_value_heads"),
        (["optimizer.learning_rate=0.01,0.02", "nonsense"], "key=value"),
    ],
)
def test_a_grid_that_compares_nothing_is_refused_with_the_reason(words, reason):
    assert reason in refused(*words)


def test_values_that_are_derived_to_be_equal_are_refused():
    recipe = tiny_recipe()
    del recipe["optimizer"]["learning_rate"]
    text = refused("optimizer.learning_rate=null,0.001,0.002", recipe=recipe)
    assert "null, 0.001: these make the same recipe: all become 0.001" in text


def test_all_problems_of_all_recipes_are_reported_together():
    text = refused("optimizer.learning_rate=0.01,-1,-2", "train.max_length=16,999", "train.eval_stepz=5")
    assert text.count("train.eval_stepz") == 1
    assert "optimizer.learning_rate = -1" in text
    assert "optimizer.learning_rate = -2" in text
    assert "max_length=999" in text


def test_a_sweep_without_validation_data_says_that_there_is_nothing_to_compare():
    assert "without validation data" in refused(RATES, "validation.fraction=0.0")


def test_the_measure_is_the_stages_held_out_one_and_an_unknown_one_is_refused():
    assert plan_sweep(tiny_recipe(), [RATES]).measure == "eval_loss"
    assert plan_sweep(tiny_recipe(), ["tokenizer=bytes,{bpe: 300}"]).measure == "bits_per_byte"
    assert "Did you mean eval_loss?" in refused(RATES, measure="eval_los")
    assert "neither a higher nor a lower value is better" in refused(RATES, measure="learning_rate")


def test_a_key_that_changes_the_meaning_of_the_measure_gets_a_remark():
    assert "train.max_length tokens" in plan_sweep(tiny_recipe(), ["train.max_length=8,16"]).remarks[0]


def test_optimizers_are_compared_with_a_warning_unless_their_learning_rates_are_compared_too(in_tmp_path):
    names, rates = "optimizer.name=adamw,muon", "optimizer.learning_rate=1e-3,3e-3"
    assert any("rate is not tuned" in remark for remark in plan_sweep(tiny_recipe(), [names]).remarks)
    assert not any("rate is not tuned" in remark for remark in plan_sweep(tiny_recipe(), [names, rates]).remarks)


def test_the_help_names_the_default_number_of_seeds(capsys):
    for command, default in (("sweep", f"1; {SEEDS_OF_PRESET} with --preset seeds"), ("duel", str(MIN_SEEDS))):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert f"(default {default})" in " ".join(capsys.readouterr().out.split())


def test_a_key_that_switches_on_a_group_gets_a_remark():
    recipe = post_recipe("sft", model={"checkpoint": write_base()})
    sweep = plan_sweep(recipe, ["lora.r=2,4"])
    assert "The recipe has no lora. The runs have it, because lora.r is compared." in sweep.remarks
    assert [c.values["lora.r"] for c in plan_sweep(recipe, preset="lora-rank").configurations] == [
        "4",
        "8",
        "16",
        "32",
        "64",
    ]
    assert "no effect" in refused("lora.target_modules=[q_proj],[v_proj]", recipe=recipe)


def test_presets_are_derived_from_the_recipe():
    assert ", ".join(PRESETS) == NAMED
    rates = plan_sweep(tiny_recipe(), preset="learning-rate")
    assert [c.values["optimizer.learning_rate"] for c in rates.configurations] == [
        "0.0025",
        "0.005",
        "0.01",
        "0.02",
        "0.04",
    ]
    assert len(plan_sweep(tiny_recipe(), preset="seeds").cells_to_run()) == 5
    optimizers = plan_sweep(tiny_recipe(), preset="optimizer")
    assert {"muon", "sophia"} <= {c.values["optimizer.name"] for c in optimizers.configurations}
    assert "adamw_8bit" not in {c.values["optimizer.name"] for c in optimizers.configurations}  # needs a GPU
    assert len(plan_sweep(tiny_recipe(), preset="position-embedding").configurations) == 5
    assert "has no LoRA" in refused(preset="lora-rank")
    assert "Did you mean seeds?" in refused(preset="seed")


def test_more_values_and_seeds_are_added_to_a_sweep_and_another_recipe_is_refused_with_the_difference():
    first = plan_sweep(tiny_recipe(), [RATES], name="s")
    first.write()
    more = plan_sweep(tiny_recipe(), ["optimizer.learning_rate=0.02,0.04"], seeds=2, name="s")
    more.write()
    assert [c.name for c in open_sweep("s").configurations] == [
        f"learning_rate={rate}" for rate in ("0.01", "0.02", "0.04")
    ]
    assert {(c.configuration.name, c.seed) for c in more.cells_to_run()} == {
        (f"learning_rate={rate}", seed) for rate in ("0.02", "0.04") for seed in (1337, 1338)
    }
    with pytest.raises(UserError, match=r"train.max_steps = 30: the sweep in checkpoints/s has 20.*--name"):
        plan_sweep(tiny_recipe(**{"train.max_steps": 30}), [RATES], name="s")
    with pytest.raises(UserError, match=r"this sweep compares optimizer\.learning_rate"):
        plan_sweep(tiny_recipe(), ["model.norm=rmsnorm,layernorm"], name="s")
    Path("checkpoints/other").mkdir()
    with pytest.raises(UserError, match="exists and is not a sweep"):
        plan_sweep(tiny_recipe(), [RATES], name="other")


def test_short_names_of_keys_are_unique():
    assert short_keys(["optimizer.learning_rate"]) == {"optimizer.learning_rate": "learning_rate"}
    assert short_keys(["optimizer.name", "scheduler.name"]) == {
        "optimizer.name": "optimizer",
        "scheduler.name": "scheduler",
    }
    assert short_keys(["lora.r"]) == {"lora.r": "lora.r"}
    assert set(short_keys(["data.0.weight", "data.1.weight"]).values()) == {"data.0.weight", "data.1.weight"}


def test_long_values_make_short_different_folder_names():
    long = "a" * 90
    sweep = plan_sweep(tiny_recipe(), [f"samples.prompts=[{long}b],[{long}c]"])
    names = [cell.name for cell in sweep.cells()]
    assert len(set(names)) == 2
    assert all(len(name) <= 100 for name in names)


def test_the_stages_of_a_pipeline_get_the_seeds_too():
    pretrain = {key: value for key, value in tiny_recipe().items() if key not in ("name", "device")}
    second = {"stage": "eval", "data": [{"path": "text.txt"}], "seed": 7}
    recipe = {"name": "two", "device": "cpu", "stages": [pretrain, second]}
    sweep = plan_sweep(recipe, ["stages.0.optimizer.learning_rate=0.01,0.02"], seeds=2)
    assert {(c.recipe["seed"], c.recipe["stages"][1]["seed"]) for c in sweep.cells()} == {(1337, 7), (1338, 8)}


def test_a_sweep_without_a_result_explains_no_result_and_counts_its_runs_in_words():
    def rows(*statuses):
        return [SimpleNamespace(n=0, states=[SimpleNamespace(status=status, value=None) for status in statuses])]

    assert how_to_read(None, rows("waiting")) == "No run has a result yet."
    assert what_is_missing(rows("waiting", "stopped")) == [
        "1 of 2 runs has not run yet.",
        "1 of 2 runs was stopped; it continues when this is resumed.",
    ]
    assert what_is_missing(rows("waiting", "waiting")) == ["2 of 2 runs have not run yet."]
    assert what_is_missing(rows("waiting", "failed"))[0] == "1 of 2 runs failed; it is listed below."


def test_the_time_left_of_a_sweep_is_the_time_of_its_plan_until_a_run_has_started():
    sweep = plan_sweep(tiny_recipe(), [RATES], seeds=2)
    shown = []
    work = _Work(sweep, sweep.cells_to_run(), jobs=1, retry_failed=False)
    work.report(lambda states, seconds: shown.append(seconds), at_once=True)
    assert shown == [pytest.approx(2 * cost_of_a_seed(sweep)[0])]
    assert dict(plan_rows(sweep, work.states()))["time"].startswith(about(shown[0]))


def test_the_time_left_of_a_run_becomes_less_while_it_starts_and_with_each_step():
    sweep = plan_sweep(tiny_recipe(), [RATES])
    state = CellState(sweep.cells()[0], "running", max_steps=4)
    whole = run_seconds(sweep, state.cell.configuration.name)
    training = whole - START_SECONDS
    assert seconds_left(sweep, state) == whole
    assert seconds_left(sweep, state, 5.0) == pytest.approx(whole - 5)
    assert seconds_left(sweep, replace(state, step=1), 60.0) == pytest.approx(0.75 * training)
    # A run that was stopped starts again.
    assert seconds_left(sweep, replace(state, step=1)) == pytest.approx(START_SECONDS + 0.75 * training)


def test_a_sweep_without_an_equals_sign_says_how_to_write_it():
    with pytest.raises(UserError, match=r"Write key=value, several values separated by commas: optimizer\.name=VALUE"):
        plan_sweep(tiny_recipe(), ["optimizer.name", "adamw,muon"])
