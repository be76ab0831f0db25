"""The experiment on the bijection task: models of equal size, a study that resumes, checkpoints that open."""

import pytest
import torch

from llm_lab.errors import UserError
from llm_lab.events import Notice
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.studies.bayes_geometry import read_states
from llm_lab.studies.bayes_models import NAMES, Plan, build_model, held_out, measure, parameters_of
from llm_lab.studies.bijections import Bijections
from llm_lab.studies.experiment_files import find_experiment
from llm_lab.studies.sequence_models import PositionModel, logits_of
from llm_lab.studies.study_process import open_study, run_study

TINY = {"values": 4, "pairs": 4, "hidden_size": 16, "layers": 2, "heads": 2, "steps": 12, "batch_size": 4, "seeds": 2}


def run_tiny(root, **options):
    """Run the experiment as the command does; return its folder and the lines of progress."""
    folder, _ = open_study(find_experiment("bayesian_geometry"), TINY | options, root=root)
    said = []
    run_study(folder, lambda event: said.append(event.text) if isinstance(event, Notice) else None)
    return folder, said


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory):
    return run_tiny(tmp_path_factory.mktemp("studies"))


def test_a_study_reports_every_model_and_every_seed(tiny_study):
    folder, _ = tiny_study
    results = folder.facts()["results"]
    assert {"transformer_mae_bits", "lstm_mae_bits", "no_attention_mae_bits"} <= results.keys()
    assert results["transformer_kl_bits"] > 0
    report = folder.report_path.read_text()
    assert "Claims and doubts" in report
    assert (folder.path / "tables/seeds.csv").read_text().count("\n") == 3
    for picture in ("entropy", "training", "seeds", "geometry", "heads", "manifold-0", "manifold-12"):
        assert (folder.path / f"pictures/{picture}.svg").read_text().startswith("<svg")


def test_a_checkpoint_opens_as_a_model_and_gives_the_reported_error(tiny_study):
    folder, _ = tiny_study
    saved = folder.path / "transformer-seed-0" / "model"
    task = Bijections(4, 4)
    assert load_tokenizer(saved)("x0 y3 x1")["input_ids"] == [0, 7, 1]
    again = measure(load_model(str(saved)), task, held_out(task))
    kept = (folder.path / "transformer-seed-0" / "result.json").read_text()
    assert f'"mae_bits": {float(again.errors.mean())!r}'[:24] in kept


def test_a_stopped_study_resumes_without_training_what_is_finished(tiny_study):
    folder, said = tiny_study
    (folder.path / "lstm-seed-1" / "result.json").unlink()
    folder.update(status="stopped")
    before = folder.facts()["results"]
    again, resumed = run_tiny(folder.path.parent)
    assert again.path == folder.path
    assert sum(text.endswith("already done") for text in resumed) == 2 * len(NAMES) - 1
    last = next(text for text in resumed if text.startswith("lstm-seed-1: step 12"))
    assert last.split("bits")[0] in "\n".join(said)
    assert again.facts()["results"] == before | {
        key: pytest.approx(value) for key, value in again.facts()["results"].items()
    }


def test_more_pairs_than_keys_are_refused_unless_keys_are_repeated(tmp_path):
    with pytest.raises(UserError, match=r"repeated_keys=true"):
        run_tiny(tmp_path, pairs=5)


def test_the_three_models_have_the_same_size_within_two_percent():
    sizes = {
        kind: parameters_of(build_model(Plan(kind, 0, Bijections(10, 10), 64, 3, 4, 10, 4, 0.01))) for kind in NAMES
    }
    assert max(sizes.values()) / min(sizes.values()) < 1.02


def test_each_position_of_the_model_without_attention_sees_only_its_own_token():
    model = PositionModel(9, 8, 16, 2)
    first, second = torch.tensor([[0, 1, 2]]), torch.tensor([[5, 4, 2]])
    assert torch.equal(logits_of(model, first)[:, 2], logits_of(model, second)[:, 2])
    assert not torch.equal(logits_of(model, first)[:, 0], logits_of(model, second)[:, 0])


def test_the_states_are_those_that_the_model_reports():
    task = Bijections(4, 4)
    model = build_model(Plan("transformer", 0, task, 16, 2, 2, 10, 4, 0.01))
    tokens = task.draw(3, torch.Generator().manual_seed(0))
    found = read_states(model, task, tokens)
    reported = model(tokens[:, :-1], output_hidden_states=True).hidden_states
    assert torch.allclose(found.layers[0], reported[1][:, 0::2])
    block = model.model.layers[1]
    added = found.layers[1] - found.layers[0] - found.attended
    middle = found.layers[0] + found.attended
    assert torch.allclose(added, block.mlp(block.post_attention_layernorm(middle)), atol=1e-6)


def test_the_hidden_markov_task_reports_the_distance_at_other_lengths_too(tmp_path):
    sizes = {"hidden_size": 16, "layers": 1, "heads": 1, "steps": 4, "batch_size": 4}
    experiment = find_experiment("bayesian_geometry")
    folder, _ = open_study(experiment, sizes | {"task": "hidden_markov", "states": 2, "observations": 4}, root=tmp_path)
    run_study(folder, lambda event: None)
    head, first, *_ = (folder.path / "tables/lengths.csv").read_text().splitlines()
    assert head.endswith("6 symbols,10 symbols")
    error = float(first.split(",")[-3])
    assert error == pytest.approx(folder.facts()["results"]["transformer_mae_bits"])
    assert "shown Bayes' answers" in folder.report_path.read_text()
    assert "cosine" not in (folder.path / "tables/checkpoints.csv").read_text()


def test_an_option_of_the_other_task_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"pairs = 3: it has no effect with task=hidden_markov"):
        run_tiny(tmp_path, task="hidden_markov", values=10, pairs=3)
