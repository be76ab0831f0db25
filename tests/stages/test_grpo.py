"""GRPO as the stage runs it: ratios, padding, temperature and advantages checked by hand; and it learns a task."""

from pathlib import Path

import pytest
import torch
from support.post_runs import post_recipe, rows_of, write_base, write_questions

from llm_lab.hf.load import load_model
from llm_lab.runner import run
from llm_lab.stages.grpo import LabGRPOTrainer
from llm_lab.stages.rollouts import Draws

QUICK = {"train.max_steps": 2, "train.eval_steps": 2, "train.save_steps": 1, "train.per_device_train_batch_size": 8}
POSITIONS = ["rope", "alibi", "sinusoidal"]


@pytest.fixture(autouse=True)
def workplace(in_tmp_path):
    write_questions()


@pytest.fixture
def seen(monkeypatch):
    """The batch of every step, and the log-probabilities that have gradients."""
    kept = {"batches": [], "logps": []}
    find, compute = LabGRPOTrainer._get_per_token_logps_and_entropies, LabGRPOTrainer._compute_loss

    def watched_find(self, *args, **keys):
        found = find(self, *args, **keys)
        if torch.is_grad_enabled():
            kept["logps"].append(found[0].detach())
        return found

    def watched_compute(self, model, inputs):
        kept["batches"].append({name: value.clone() for name, value in inputs.items() if torch.is_tensor(value)})
        return compute(self, model, inputs)

    monkeypatch.setattr(LabGRPOTrainer, "_get_per_token_logps_and_entropies", watched_find)
    monkeypatch.setattr(LabGRPOTrainer, "_compute_loss", watched_compute)
    return kept


def ratios(seen: dict, step: int) -> torch.Tensor:
    batch = seen["batches"][step]
    return (seen["logps"][step] - batch["old_per_token_logps"])[batch["completion_mask"].bool()].exp()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_the_ratio_is_one_before_the_first_update_and_not_after(position, temperature, lora, seen):
    write_base(position_embedding=position, hidden_dropout=0.2, attention_dropout=0.2)
    run(post_recipe("grpo", **QUICK, **{"grpo.num_iterations": 2, "grpo.temperature": temperature}, lora=lora))
    assert (ratios(seen, 0) - 1).abs().max() <= 1e-6
    assert (ratios(seen, 1) - 1).abs().max() > 1e-5
    assert torch.equal(seen["batches"][0]["completion_ids"], seen["batches"][1]["completion_ids"])


@pytest.mark.parametrize("position", POSITIONS)
def test_log_probabilities_are_those_of_the_sampled_tokens(position, seen):
    """Computed by hand, row by row and without padding, at the sampling temperature."""
    write_base(position_embedding=position)
    changes = {"grpo.temperature": 0.6, "grpo.num_iterations": 2}
    path = run(post_recipe("grpo", **QUICK, **changes, optimizer={"name": "adamw", "learning_rate": 1e-9}))["path"]
    batch, model = seen["batches"][0], load_model(f"{path}/model")
    assert not batch["prompt_mask"].all(), "no prompt is padded"
    assert (batch["prompt_mask"].diff(dim=1) >= 0).all(), "padding must be on the left"
    for row in range(len(batch["prompt_ids"])):
        prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        answer = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
        logits = model(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1]
        by_hand = (logits / 0.6).log_softmax(-1).gather(1, answer[:, None])[:, 0]
        found = seen["logps"][0][row][: len(answer)]
        assert torch.allclose(found, by_hand, atol=1e-4)
        assert not torch.allclose(found, logits.log_softmax(-1).gather(1, answer[:, None])[:, 0], atol=1e-3)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_advantages_are_rewards_minus_the_mean_of_their_group(scale, seen):
    Path("mine.py").write_text(
        "def odd(completions, **columns):\n"
        "    found = [sum(map(ord, text)) % 97 / 97 for text in completions]\n"
        "    open('rewards.txt', 'a').write(' '.join(map(str, found)) + '\\n')\n"
        "    return found\n"
    )
    write_base()
    rewards = [{"python": "mine.py:odd"}]
    run(post_recipe("grpo", **QUICK, rewards=rewards, grpo={"max_completion_length": 6, "scale_rewards": scale}))
    lines = Path("rewards.txt").read_text().splitlines()
    for line, batch in zip(lines, seen["batches"], strict=True):
        groups = torch.tensor([float(word) for word in line.split()]).view(-1, 4)
        by_hand = groups - groups.mean(1, keepdim=True)
        by_hand = by_hand / (groups.std(1, keepdim=True) + 1e-4) if scale == "group" else by_hand
        # TRL shuffles the answers after scoring.
        assert torch.allclose(batch["advantages"].flatten().sort()[0], by_hand.flatten().sort()[0], atol=1e-5)
        assert by_hand.abs().max() > 0.05


def test_grpo_learns_toy_verifiable_task():
    """The reward is the share of digits and signs; it rises on training prompts and on held-out ones."""
    write_base(hidden_size=32, num_hidden_layers=1)
    Path("mine.py").write_text(
        "def low(completions, **columns):\n"
        "    return [sum(c < '@' for c in text) / max(len(text), 1) for text in completions]\n"
    )
    steps = {"max_steps": 60, "eval_steps": 60, "save_steps": 60, "logging_steps": 10, "max_length": 64}
    low = [{"python": "mine.py:low"}]
    score = {"prompts": 20, "max_completion_length": 6, "rewards": low}
    recipe = post_recipe("grpo", rewards=low, score=score, train=steps | {"per_device_train_batch_size": 32})
    recipe |= {"validation": {"fraction": 0.3}, "optimizer": {"name": "adamw", "learning_rate": 2e-2}}
    rows = rows_of(run(recipe)["path"])
    trained = [row["reward"] for row in rows if "loss" in row]
    held_out = [row["eval_reward_sampled"] for row in rows if "eval_reward_sampled" in row]
    assert trained[0] < 0.45
    assert trained[-1] > 0.85
    assert held_out[0] < 0.45
    assert held_out[-1] > 0.85


def test_each_row_draws_its_own_tokens_in_the_right_proportions():
    """A row draws the same in any batch, so a step has the same outputs in any number of processes."""
    wanted = torch.tensor([0.5, 0.3, 0.2, 0.0])
    scores = wanted.log().expand(4000, 4) * 2  # at a temperature of 2

    def draw(rows: range, step: int = 7) -> list[list[int]]:
        draws = Draws(1, step, rows, temperature=2.0)
        prompt = torch.zeros(len(rows), 3, dtype=torch.long)
        chosen = [draws(prompt, scores[: len(rows)]) for _ in range(2)]
        assert all((each > -torch.inf).sum(dim=1).eq(1).all() for each in chosen)
        return torch.stack([each.argmax(dim=1) for each in chosen], dim=1).tolist()

    whole = draw(range(4000))
    assert draw(range(1000)) + draw(range(1000, 4000)) == whole
    assert draw(range(1000), step=8) != whole[:1000]
    counts = torch.tensor(whole).flatten().bincount(minlength=4) / 8000
    assert torch.allclose(counts, wanted, atol=0.02)
    assert counts[3] == 0
