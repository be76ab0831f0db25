"""The glossary: every quantity that is recorded has one entry, with its own name and an explanation."""

from collections import Counter

import pytest

from llm_lab.evaluation.score import ROUGE
from llm_lab.runs.charts import PANELS
from llm_lab.runs.describe import HEADLINES
from llm_lab.runs.glossary import QUANTITIES, name_of, quantity, write
from llm_lab.runs.health import RULES
from llm_lab.stages import dpo, grpo, ppo, reward, sft
from llm_lab.terminal.track import DETAILS, REWARDED
from llm_lab.training.trainer import LabTrainerMixin

TRAINERS = {
    value
    for module in (dpo, grpo, ppo, reward, sft)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, LabTrainerMixin)
}


@pytest.mark.parametrize("trainer", sorted(TRAINERS, key=str), ids=lambda trainer: trainer.__name__)
def test_every_metric_of_a_trainer_is_explained(trainer):
    assert set(trainer.logged.values()) <= QUANTITIES.keys()


def test_everything_that_screens_and_evaluations_name_is_explained():
    shown = {*HEADLINES, *DETAILS, *REWARDED, *ROUGE, *(key for panel in PANELS for key in panel.keys), *RULES}
    assert shown <= QUANTITIES.keys()


def test_each_quantity_has_its_own_name_and_a_sentence():
    names = Counter(entry.name for entry in QUANTITIES.values())
    assert [name for name, count in names.items() if count > 1] == []
    assert all(entry.meaning.endswith(".") for entry in QUANTITIES.values())
    assert all(entry.healthy.endswith(".") for entry in QUANTITIES.values() if entry.healthy)


def test_keys_with_a_subject_are_named_after_it():
    assert name_of("eval_loss/my.txt") == "validation loss, my.txt"
    assert name_of("reward/length") == "reward: length"
    assert name_of("tasks/arc_easy/acc") == "arc_easy acc"
    assert quantity("my_metric").name == "my metric"


def test_values_are_formatted_by_their_quantity():
    assert write("exact_match", 0.625) == "62.5 %"
    assert [write("learning_rate", rate) for rate in (2e-5, 0.02, 0.0014812, 0.0, 3e10)] == [
        *("2e-5", "0.02", "0.00148", "0", "3e10")
    ]
    assert write("memory_bytes", 3 * 2**30) == "3.0 GiB"
    assert write("kl", None) == "-"
    assert [write("margin", value) for value in (-1e-5, -0.5, float("-inf"))] == ["0.000", "-0.500", "-inf"]
