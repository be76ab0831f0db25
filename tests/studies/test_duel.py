"""Duels: what is kept equal, and the verdict in words."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import tiny_recipe, write_text
from support.measured_sweeps import fill_cells

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.studies.duel import compare, equal_time, open_duel, plan_duel
from llm_lab.studies.duel_report import DuelResult, verdict_words, write_duel_report

RATES = "optimizer.learning_rate=0.01,0.02"


@pytest.fixture(autouse=True)
def _text(in_tmp_path):
    write_text("text.txt")


def duel_with(trained_once, second, *, seeds: int, seconds=(10.0, 10.0), first=2.0, **options):
    """Return a finished duel whose results are first + seed / 100, and second(number of the seed).

    seconds: the training time of a run of each.
    """
    duel = plan_duel(tiny_recipe(), [RATES], seeds=seeds, name="d", **options)

    def results(number, cell):
        seed, is_second = cell.seed - 1337, number % 2
        loss = second(seed) if is_second else first + seed / 100
        return {"eval_loss": loss, "train_tokens": 1280, "tokens_per_second": 1280 / seconds[is_second]}

    return fill_cells(duel, trained_once / "checkpoints" / "tiny", results)


def said(duel, by: str = "tokens") -> str:
    return verdict_words(duel, compare(duel, by)[0])


def test_a_clear_difference_in_eight_seeds_is_significant_with_its_effect_and_interval(trained_once):
    duel = duel_with(trained_once, lambda seed: 1.9 + seed / 100 + (seed % 3) / 1000, seeds=8)
    words = said(duel)
    assert words.startswith(
        "At equal tokens, learning_rate=0.02 is better than learning_rate=0.01: the validation loss of"
    )
    assert "is 0.0991 lower on average" in words
    assert "8 seeds, learning_rate=0.02 ahead in 8; sign-flip test p = 0.00781" in words
    assert "95 % t interval 0.0984 to 0.0998" in words


def test_the_same_difference_in_five_seeds_is_not_called_significant(trained_once):
    duel = duel_with(trained_once, lambda seed: 1.9 + seed / 100, seeds=5)
    words = said(duel)
    assert "too few seeds to decide" in words
    assert "the smallest possible p is 0.0625" in words
    assert words.endswith("To decide, run it again with 6 seeds: only the missing ones are trained.")
    assert "is better than" not in words


def test_a_stopped_duel_counts_the_seeds_that_are_missing(trained_once):
    duel = duel_with(trained_once, lambda seed: 1.9 + seed / 100, seeds=8)
    for cell in duel.cells()[4:]:
        shutil.rmtree(cell.folder)
    words = said(duel)
    assert "too few seeds to decide" in words
    assert words.endswith("Seeds without both results yet: 6 of 8.")


def test_no_difference_says_how_many_new_seeds_would_settle_it(trained_once):
    duel = duel_with(trained_once, lambda seed: 2.0 + seed / 100 + (0.02 if seed % 2 else -0.03), seeds=8)
    words = said(duel)
    assert "no difference was found" in words
    assert "95 % t interval -0.0" in words
    assert "About 227 seeds would settle" in words
    assert "seed=1345" in words


def test_equal_results_are_called_equal(trained_once):
    assert "both have the same validation loss in every seed" in said(
        duel_with(trained_once, lambda seed: 2.0 + seed / 100, seeds=6)
    )


def test_the_slower_recipe_gets_as_many_steps_as_fit_into_the_time_of_the_faster_one(trained_once):
    duel = duel_with(trained_once, lambda seed: 1.9, seeds=2, seconds=(10.0, 16.0))
    timed, how = equal_time(duel)
    third = timed.configurations[2]
    assert third.name == "learning_rate=0.02-equal-time"
    assert third.recipe["train"]["max_steps"] == round(20 * 10 / 16)
    assert "12 of 20 steps" in how
    assert [cell.configuration.name for cell in timed.cells_to_run()].count(third.name) == 2
    timed.write()
    again, _ = equal_time(plan_duel(tiny_recipe(), [RATES], seeds=2, name="d"))
    assert again.configurations == timed.configurations


def test_equally_fast_recipes_are_compared_by_their_existing_runs(trained_once):
    duel = duel_with(trained_once, lambda seed: 1.9, seeds=2, seconds=(10.0, 10.1))
    timed, how = equal_time(duel)
    assert timed == duel
    assert "Both take the same time" in how
    assert [one.verdict.mean for one in compare(duel)] == [pytest.approx(-0.105)] * 2


def test_the_configuration_with_more_tokens_is_shortened_to_equal_tokens():
    duel = plan_duel(tiny_recipe(), ["train.per_device_train_batch_size=4,8"])
    steps = [one.recipe["train"]["max_steps"] for one in duel.configurations]
    assert steps == [20, 10]
    assert "10 steps instead of 20, so that both train on 1,280 tokens" in duel.remarks[0]
    assert len(duel.seeds) == 6


def test_two_recipes_are_compared_with_the_seeds_of_the_first():
    other = tiny_recipe(**{"optimizer.learning_rate": 0.03}) | {"seed": 5, "name": "other"}
    duel = plan_duel(tiny_recipe(), ["train.max_steps=8"], other=other, seeds=2)
    assert duel.folder == Path("checkpoints/tiny-against-other")
    assert [(c.recipe["seed"], c.recipe["optimizer"]["learning_rate"], c.recipe["train"]["max_steps"])
            for c in duel.cells()] == [(1337, 0.01, 8), (1337, 0.03, 8), (1338, 0.01, 8), (1338, 0.03, 8)]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "other", "reason"),
    [
        ([], None, "there is only one recipe"),
        (["optimizer.learning_rate=0.01,0.02,0.03"], None, "these values make 3. A sweep compares more"),
        ([RATES], "another", "two recipes are compared, not values of a key"),
        ([], "the same", "makes the same runs"),
        (["train.max_steps=10,20"], None, "their length can't be compared. Use a sweep"),
        (["optimizer.learning_rate=0.01,-1"], None, "optimizer.learning_rate = -1"),
    ],
)
def test_a_duel_that_compares_nothing_is_refused_with_the_reason(words, other, reason):
    recipes = {"another": tiny_recipe(**{"optimizer.learning_rate": 0.5}), "the same": tiny_recipe()}
    with pytest.raises(UserError) as error:
        plan_duel(tiny_recipe(), words, other=recipes.get(other))
    assert reason in str(error.value)


def test_the_report_and_the_result_in_python_have_the_pairs_and_the_verdict(trained_once, capsys):
    duel = duel_with(trained_once, lambda seed: 1.9 + seed / 200, seeds=6)
    assert main(["show", "d"]) == 0
    assert "is better than" in " ".join(capsys.readouterr().out.split())
    write_duel_report(duel, "both")
    result = DuelResult(duel.folder)
    assert result.table["difference"].iloc[1] == pytest.approx(1.905 - 2.01)
    assert "is better than" in result.verdict
    assert "is better than" in result._repr_html_()
    data = json.loads((duel.folder / "results.json").read_text())
    assert data["comparisons"][0]["p"] == 2 / 64
    assert data["comparisons"][0]["pairs"][0] == [1337, 2.0, 1.9]
    assert "is better than" in (duel.folder / "report.md").read_text()
    assert (duel.folder / "report.html").read_text().count("<svg") >= 2


@pytest.mark.slow
def test_a_duel_runs_from_the_command_line_and_is_skipped_when_it_is_done(capsys):
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe()))
    words = ["duel", "recipe.yaml", RATES, "--seeds", "2", "--by", "tokens", "--name", "d"]
    assert main(words) == 0
    assert "too few seeds to decide" in capsys.readouterr().out
    assert open_duel("checkpoints/d").command == f"llm-lab {' '.join(words)}"
    assert main(words) == 0
    assert "0 of 4 to run (4 done)" in capsys.readouterr().out


@pytest.mark.slow
def test_a_slower_model_is_trained_again_in_the_time_of_the_faster_one(capsys):
    write_text("text.txt", sentences=3000)
    steps = {"train.max_steps": 60, "train.eval_steps": 60, "train.save_steps": 60, "train.logging_steps": 5}
    Path("recipe.yaml").write_text(json.dumps(tiny_recipe(**steps)))
    assert main(["duel", "recipe.yaml", "model.num_hidden_layers=1,8", "--seeds", "2", "--name", "d"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "num_hidden_layers=8 was trained again" in shown
    shorter = [path for path in Path("checkpoints/d").iterdir() if "equal-time" in path.name]
    assert len(shorter) == 2
    facts = [json.loads((path / "run.json").read_text()) for path in shorter]
    assert {one["recipe"]["train"]["max_steps"] for one in facts} < set(range(4, 45))
    assert all(one["results"]["step"] == one["recipe"]["train"]["max_steps"] for one in facts)


@pytest.mark.parametrize("size", ["nano", "micro"])
def test_every_duel_of_the_page_can_be_planned_and_is_about_one_key(size):
    folder = Path(__file__).parents[2] / "configs" / "duels"
    duels = yaml.safe_load((folder / "duels.yaml").read_text())
    recorded = json.loads((Path(__file__).parents[2] / "docs" / "duels.json").read_text())
    assert {key.partition("@")[0] for key in recorded} <= duels.keys()
    for name, duel in duels.items():
        if size == "micro" and f"{name}@{size}" not in recorded:
            continue
        planned = plan_duel(folder / f"{size}.yaml", [duel["change"]], by="tokens")
        first, second = (planned.jobs[one.name].stages[0].values for one in planned.configurations)
        assert first["train"]["max_steps"] == second["train"]["max_steps"], name
        assert planned.measure == "eval_loss", name
