"""The experiments attention and probing, as the command runs them, at the smallest size."""

import itertools
import json
import math

import pytest
import torch

from llm_lab.data.arithmetic_world import PEOPLE, world_documents
from llm_lab.errors import UserError
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer
from llm_lab.model.configuration_lab import LabConfig
from llm_lab.model.modeling_lab import LabForCausalLM
from llm_lab.studies.counted_stories import LABELS, counted_stories
from llm_lab.studies.experiment_files import find_experiment
from llm_lab.studies.experiments import probing
from llm_lab.studies.repeated_texts import CHARACTERS, repeated_texts
from llm_lab.studies.study_process import open_study, run_study


def run_tiny(name, root, **options):
    """Run an experiment as the command does; return its folder."""
    folder, _ = open_study(find_experiment(name), {"device": "cpu", **options}, root=root)
    run_study(folder, lambda event: None)
    return folder


@pytest.fixture(scope="module")
def attention_study(tmp_path_factory):
    root = tmp_path_factory.mktemp("attention")
    return run_tiny("attention", root, steps=20, checkpoints=4, batch=2, hidden_size=32, heads=2, one_layer=False)


def test_attention_measures_every_checkpoint_and_removes_every_head(attention_study):
    results = attention_study.facts()["results"]
    assert 0 <= results["induction_score"] <= 1
    assert results["loss_on_new_text"] > 0
    checkpoints = json.loads((attention_study.path / "tables/checkpoints.json").read_text())
    assert [row["step"] for row in checkpoints] == [5, 10, 15, 20]
    heads = json.loads((attention_study.path / "tables/heads.json").read_text())
    assert len(heads) == 4
    for picture in ("appearance", "removed", "head"):
        assert (attention_study.path / f"pictures/{picture}.svg").read_text().startswith("<svg")


def test_attention_reports_that_no_induction_head_appeared_if_none_did(attention_study):
    results = attention_study.facts()["results"]
    assert results["induction_score"] < 0.5
    assert results["induction_head"] == "none appeared"
    assert "appears_before_step" not in results
    report = attention_study.report_path.read_text()
    assert "## No induction head appeared" in report
    assert "the diagonal stripe is the induction head" not in report
    rows = json.loads((attention_study.path / "tables/checkpoints.json").read_text())
    first, last = (rows[at]["loss on new text"] / math.log(len(CHARACTERS)) for at in (0, -1))
    assert f"The loss on new text goes from {first:.2f} to {last:.2f}" in report


def test_attention_compares_with_other_heads_only_if_there_are_any(tmp_path):
    small = {"steps": 20, "checkpoints": 4, "batch": 2, "hidden_size": 32, "one_layer": False}
    report = run_tiny("attention", tmp_path, **small, layers=2, heads=1).report_path.read_text()
    assert "nan" not in report


def test_attention_refuses_a_longest_chunk_below_the_shortest(tmp_path):
    with pytest.raises(UserError, match="longest"):
        run_tiny("attention", tmp_path, shortest=20, longest=10)


def test_only_the_repetition_of_a_text_can_be_predicted():
    for text in repeated_texts(20, shortest=6, longest=20, times=3, seed=1):
        chunk = text[: len(text) // 3]
        assert text == chunk * 3
        assert len(set(chunk)) == len(chunk)
        assert set(chunk) <= set(CHARACTERS)
    assert len({len(text) for text in repeated_texts(20, shortest=6, longest=20, times=3, seed=1)}) > 5


def test_probing_reports_every_fact_at_every_layer_of_a_named_model(tmp_path):
    torch.manual_seed(0)
    model = LabForCausalLM(LabConfig(vocab_size=257, hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    save_model(model, tmp_path / "named", make_byte_tokenizer())
    folder = run_tiny("probing", tmp_path, model=str(tmp_path / "named"), train_stories=200, test_stories=100)
    rows = json.loads((folder.path / "tables/probes.json").read_text())
    assert len(rows) == 2 * len(LABELS) * 2
    assert all(0 <= row[key] <= 1 for row in rows for key in ("trained", "untrained", "random labels", "most common"))
    embedding = [row for row in rows if row["layer"] == "embedding" and row["token"] == probing.RESULT]
    # The embedding of the same token has no information about a story: about one in eight people is found, and so on.
    assert all(row["trained"] < 0.3 for row in embedding if row["fact"] in ("person", "thing", "answer"))


@pytest.mark.slow
def test_probing_pretrains_a_model_if_none_is_named(tmp_path):
    folder = run_tiny("probing", tmp_path, steps=10, hidden_size=32, layers=1, train_stories=200, test_stories=100)
    assert load_tokenizer(folder.path / "model")("Tom")["input_ids"]
    assert "story_person_best" in folder.facts()["results"]


def test_a_counted_story_is_the_beginning_of_a_pretraining_text():
    documents = "\n".join(itertools.islice(world_documents(), 300))
    for one in itertools.islice(counted_stories("train"), 30):
        before, sign, change = one.steps.removesuffix(" =").rsplit(". ", 1)[-1].removeprefix("So ").split(" ")
        answer = int(before) + int(change) * (1 if sign == "+" else -1)
        assert (answer, int(sign == "+")) == (one.labels["answer"], one.labels["last change"])
        assert one.story.startswith(f"{PEOPLE[one.labels['person']][0]} has {one.labels['start']} ")
        assert one.story.count(".") == one.labels["changes"] + 1
    assert "\nSo " in documents


def test_training_and_test_stories_share_no_problem():
    train, test = ({one.text for one in counted_stories(split)} for split in ("train", "test"))
    assert not {text.split("\n")[1] for text in train} & {text.split("\n")[1] for text in test}


def test_the_positions_of_a_story_are_those_of_its_last_tokens():
    stories = list(itertools.islice(counted_stories("train"), 5))
    tokenizer = make_byte_tokenizer()
    ids, story_ends, ends = probing._encoded(tokenizer, stories)
    for row, one in enumerate(stories):
        assert tokenizer.decode(ids[row, : story_ends[row] + 1]) == one.story
        assert tokenizer.decode(ids[row, : ends[row] + 1]) == one.text
        assert torch.equal(ids[row, ends[row] :], ids[row, ends[row]].expand(ids.shape[1] - ends[row]))
