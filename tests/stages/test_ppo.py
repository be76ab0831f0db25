"""PPO: what must hold before, during and after an update, on models of a few thousand parameters."""

import inspect
import math

import pytest
import torch
from support.ppo_runs import LORA, PROMPTS, critic_of, log_rows, make_recipe, make_start, make_trainer
from transformers import BertConfig, BertForSequenceClassification
from trl import GRPOTrainer

from llm_lab.errors import UserError
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.stages.critic import Critic
from llm_lab.stages.ppo_trainer import PPOConfig, PPOTrainer, clipped_policy_loss, clipped_value_loss, draw_minibatches
from llm_lab.stages.reward import save_reward_model
from llm_lab.training.tuned_run import prepare_training

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),  # TRL uses the old name
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
]


# The default suite has one model for each way of handling positions: rotary, none, and learned embeddings.
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("sinusoidal", "llama")]


@pytest.fixture(scope="module", params=["rope", "alibi", "gpt2", *SLOW])
def start(request, tmp_path_factory):
    return make_start(tmp_path_factory.mktemp(request.param), request.param, dropout=0.2)


@pytest.fixture(scope="module")
def one_start(tmp_path_factory):
    return make_start(tmp_path_factory.mktemp("one"))


class RecordingTrainer(PPOTrainer):
    """Records the batch of every step."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen, self.logps, self.values = [], [], []

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if torch.is_grad_enabled():
            self.logps.append(found[0].detach())
        return found

    def _compute_loss(self, model, inputs):
        self.seen.append({name: tensor.clone() for name, tensor in inputs.items()})
        return super()._compute_loss(model, inputs)


def ratio_error(trainer):
    """Return the largest |ratio - 1| at the first micro-step."""
    mask = trainer.seen[0]["loss_mask"]
    return (trainer.logps[0] - trainer.seen[0]["old_per_token_logps"])[mask].exp().sub(1).abs().max().item()


def test_every_pass_over_a_rollout_has_different_minibatches_of_the_same_rows(one_start, tmp_path):
    trainer = make_trainer(one_start, tmp_path, cls=RecordingTrainer, max_steps=8, num_iterations=3)
    trainer.train()

    def rows(batch):
        names = ("prompt_ids", "completion_ids", "old_per_token_logps", "returns", "advantages")
        return {tuple(float(x) for name in names for x in batch[name][row].flatten()) for row in range(4)}

    passes = [[rows(batch) for batch in trainer.seen[start : start + 2]] for start in (0, 2, 4)]
    assert passes[0][0] | passes[0][1] == passes[1][0] | passes[1][1] == passes[2][0] | passes[2][1]
    assert len({frozenset(batches[0]) for batches in passes}) > 1


@pytest.mark.parametrize("count", [2, 3])
def test_every_process_has_equally_many_rows_of_each_minibatch(count):
    """So a minibatch has the same rows in any number of processes, without sending rows between processes."""
    drawn = draw_minibatches(12, count, seed=3)
    for processes in (1, 2, 12 // count):
        for rows in drawn.chunk(processes):
            assert rows.bincount(minlength=count).unique().tolist() == [12 // processes // count]
    others = [draw_minibatches(12, count, seed) for seed in range(20)]
    assert all(any(other[row] != drawn[row] for other in others) for row in range(12))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ppo_ratio_is_one_before_the_first_update(start, tmp_path, temperature):
    trainer = make_trainer(start, tmp_path, cls=RecordingTrainer, temperature=temperature, max_steps=2)
    trainer.train()
    assert ratio_error(trainer) <= 1e-6
    assert trainer.seen[0]["loss_mask"].sum() > 0
    assert (trainer.logps[1] - trainer.seen[1]["old_per_token_logps"]).abs().max() > 1e-4  # not after one


def test_old_log_probabilities_are_those_of_the_sampled_tokens(start, tmp_path):
    """Also for left-padded prompts, whose padding TRL counts as positions."""
    trainer = make_trainer(start, tmp_path, cls=RecordingTrainer, temperature=0.7, max_steps=1)
    trainer.train()
    seen, model = trainer.seen[0], load_model(start)
    assert not seen["prompt_mask"].all()
    for row in range(4):
        prompt = seen["prompt_ids"][row][seen["prompt_mask"][row].bool()]
        completion = seen["completion_ids"][row][seen["loss_mask"][row]]
        logits = model(torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1] / 0.7
        drawn = logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]
        found = seen["old_per_token_logps"][row][seen["loss_mask"][row]]
        assert torch.allclose(found, drawn, atol=1e-5)


def test_the_models_own_generation_config_is_ignored(one_start, tmp_path):
    model = load_model(one_start)
    model.generation_config.suppress_tokens = list(range(200))
    model.generation_config.min_p = 0.9
    trainer = make_trainer(one_start, tmp_path, cls=RecordingTrainer, model=model, max_steps=2)
    trainer.train()
    drawn = torch.cat([batch["completion_ids"][batch["loss_mask"]] for batch in trainer.seen])
    assert (drawn < 200).float().mean() > 0.5
    assert model.generation_config.min_p == 0.9


@pytest.mark.parametrize("how", ["full", "lora", "adapter"])
def test_kl_is_zero_at_the_reference_and_not_after_an_update(start, tmp_path, how):
    model = load_model(start)
    if how == "adapter":  # an adapter that already changes the model
        model = prepare_training(model, make_recipe(start, lora=LORA))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    trainer = make_trainer(start, tmp_path, model=model, lora=LORA if how == "lora" else None, max_steps=5, beta=0.1)
    trainer.train()
    before, after = log_rows(trainer, "kl")
    assert before == 0.0
    assert after != 0.0


def test_the_reference_is_the_given_model_and_not_the_files_at_its_path(one_start, tmp_path):
    model = load_model(one_start)
    with torch.no_grad():
        model.lm_head.weight.mul_(3)  # changed in this process, not yet saved
    trainer = make_trainer(one_start, tmp_path, model=model, max_steps=1)
    trainer.train()
    assert log_rows(trainer, "kl") == [0.0]


def test_a_kl_coefficient_of_0_needs_no_reference_model(one_start, tmp_path):
    trainer = make_trainer(one_start, tmp_path, beta=0.0, max_steps=1)
    trainer.train()
    assert trainer.ref_model is None
    assert log_rows(trainer, "kl") == []


def test_reward_is_on_the_last_real_token_and_the_kl_on_all(one_start, tmp_path, monkeypatch):
    """With gamma 1, lambda 1 and a critic that predicts 0, the return of a token is its future reward."""
    trainer = make_trainer(
        one_start,
        tmp_path,
        cls=RecordingTrainer,
        reward=lambda completions, **_: [8.0] * len(completions),
        lam=1.0,
        max_steps=1,
    )
    trainer.generation_config.eos_token_id = list(range(0, 100))  # half of the completions end early
    trainer.eos_token_ids = list(range(0, 100))
    reference = trainer.ref_model
    with torch.no_grad():
        reference.lm_head.weight.mul_(2)  # so that there is a KL
    trainer.train()
    batch = trainer.seen[0]
    mask = batch["loss_mask"]
    lengths = mask.sum(1)
    assert lengths.min() < lengths.max() == mask.shape[1]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    logits = reference(input_ids=ids, attention_mask=attention).logits[:, -mask.shape[1] - 1 : -1]
    ref = logits.log_softmax(-1).gather(2, batch["completion_ids"][..., None])[..., 0]
    costs = 0.05 * (batch["old_per_token_logps"] - ref).masked_fill(~mask, 0)
    to_come = costs.flip(1).cumsum(1).flip(1)
    assert torch.allclose(batch["returns"], (8.0 - to_come).masked_fill(~mask, 0), atol=1e-5)
    assert not batch["advantages"][~mask].any()


def test_a_completion_that_is_cut_off_is_penalized(one_start, tmp_path):
    trainer = make_trainer(
        one_start,
        tmp_path,
        cls=RecordingTrainer,
        reward=lambda completions, **_: [1.0] * len(completions),
        lam=1.0,
        beta=0.0,
        missing_eos_penalty=5.0,
        max_steps=2,
    )
    trainer.generation_config.eos_token_id = trainer.eos_token_ids = list(range(0, 80))
    trainer.train()
    found = set()
    for batch in trainer.seen:
        ended = (batch["completion_ids"] < 80).logical_and(batch["loss_mask"]).any(1)
        assert batch["returns"][:, 0].tolist() == [1.0 if row else -4.0 for row in ended.tolist()]
        found |= set(ended.tolist())
    assert found == {True, False}


def test_values_do_not_depend_on_the_current_or_later_tokens(one_start):
    critic = critic_of(one_start)
    torch.nn.init.normal_(critic.model.score.weight)
    ids = torch.randint(0, 200, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    values = critic(ids, mask, 4).detach()
    hidden = critic.model.model(ids[1:, :6]).last_hidden_state[0, -1]  # everything before the second token
    assert values.shape == (2, 4)
    assert values[1, 1].item() == pytest.approx((hidden @ critic.model.score.weight[0]).item(), abs=1e-5)
    changed = ids.clone()
    changed[:, 6] += 1  # the second of four tokens
    difference = (critic(changed, mask, 4) - values).abs() > 1e-6
    assert difference.tolist() == [[False, False, True, True]] * 2
    alone = critic(ids[:1, 3:], mask[:1, 3:], 4)  # padding does not matter
    assert torch.allclose(alone, values[:1], atol=1e-5)


def test_a_new_critic_predicts_0_and_a_reward_model_its_score(one_start, tmp_path):
    critic = critic_of(one_start)
    ids = torch.randint(0, 200, (2, 9))
    assert not critic(ids, torch.ones_like(ids), 4).any()
    torch.nn.init.constant_(critic.model.score.weight, 0.5)
    save_reward_model(critic.model, tmp_path / "reward", load_tokenizer(one_start))
    again = critic_of(one_start, critic=tmp_path / "reward")
    assert torch.equal(again(ids, torch.ones_like(ids), 4), critic(ids, torch.ones_like(ids), 4))
    assert again(ids, torch.ones_like(ids), 4).any()


def test_an_encoder_is_refused_as_a_critic():
    config = BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_labels=1)
    with pytest.raises(UserError, match="a score head with one label"):
        Critic(BertForSequenceClassification(config))


@pytest.mark.parametrize("adapters", [False, True])
def test_trainable_parameters_change_and_others_do_not(start, tmp_path, adapters):
    trainer = make_trainer(start, tmp_path, lora=LORA if adapters else None, max_steps=4)
    networks = {"model": trainer.model, "critic": trainer.critic}
    before = {
        (network, name): parameter.detach().clone()
        for network, model in networks.items()
        for name, parameter in model.named_parameters()
    }
    trainer.train()
    for network, model in networks.items():
        for name, parameter in model.named_parameters():
            moved = not torch.equal(parameter, before[network, name])
            assert moved == parameter.requires_grad, f"{network}.{name}"
    if trainer.ref_model is not None:
        start_again = dict(load_model(start).named_parameters())
        assert all(torch.equal(p, start_again[name]) for name, p in trainer.ref_model.named_parameters())
    trained = [name for name, p in trainer.critic.named_parameters() if p.requires_grad]
    assert any("score" in name for name in trained)


def test_the_value_loss_decreases(one_start, tmp_path):
    """With a frozen model, the critic learns a reward that depends on the first letter of the prompt."""

    def reward(prompts, **_):
        return [1.0 if prompt[0] < "g" else -1.0 for prompt in prompts]

    trainer = make_trainer(
        one_start,
        tmp_path,
        reward=reward,
        learning_rate=0.0,
        beta=0.0,
        max_steps=80,
        critic_learning_rate=3e-3,
        cliprange_value=10.0,
    )
    trainer.train()
    losses, explained = log_rows(trainer, "value_loss"), log_rows(trainer, "explained_variance")
    assert sum(losses[-8:]) < 0.1 * sum(losses[:8])
    assert explained[-1] > 0.8


def test_the_critic_is_zeroed_clipped_and_stepped_once_for_an_update(one_start, tmp_path):
    norms = []

    class Spy(PPOTrainer):
        def _step_critic(self):
            before = {name: p.detach().clone() for name, p in self.critic.named_parameters()}
            super()._step_critic()
            norms.append(self._metrics["train"]["critic_grad_norm"][-1])
            assert all(p.grad is None for p in self.critic.parameters())
            assert any(not torch.equal(p, before[name]) for name, p in self.critic.named_parameters())

    seen = []
    trainer = make_trainer(
        one_start,
        tmp_path,
        cls=Spy,
        reward=lambda completions, **_: [1.0] * len(completions),
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        steps_per_generation=4,
        max_steps=3,
        max_grad_norm=1e-3,
    )
    trainer.critic_optimizer.register_step_pre_hook(
        lambda *_: seen.append(
            torch.nn.utils.get_total_norm([p.grad for p in trainer.critic.parameters() if p.grad is not None]).item()
        )
    )
    trainer.train()
    assert len(norms) == 3
    assert max(norms) > 1e-3
    assert seen == pytest.approx([1e-3] * 3, rel=1e-3)


def test_the_critics_learning_rate_follows_the_schedule(one_start, tmp_path):
    rates = []
    trainer = make_trainer(one_start, tmp_path, critic_learning_rate=0.5, learning_rate=1e-6, max_steps=4)
    trainer.critic_optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.train()
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.125])  # the default schedule is linear
    assert rates == pytest.approx([5e5 * rate for rate in log_rows(trainer, "learning_rate")])


def test_two_accumulated_halves_of_a_batch_equal_the_whole_batch(one_start, tmp_path):
    # With a large epsilon Adam is plain gradient descent; otherwise it would amplify rounding errors of zero gradients.
    common = {"adam_epsilon": 1.0, "learning_rate": 1.0, "critic_learning_rate": 1.0, "max_grad_norm": 0.0}
    runs = []
    for sizes in (
        {"per_device_train_batch_size": 8, "steps_per_generation": 1},
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    ):
        trainer = make_trainer(one_start, tmp_path, max_steps=2, **sizes, **common)
        trainer.generation_config.eos_token_id = trainer.eos_token_ids = list(range(0, 80))  # lengths differ
        trainer.train()
        runs.append(trainer)
    whole, halves = runs
    assert log_rows(whole, "completions/min_length")[0] < log_rows(whole, "completions/max_length")[0]
    for network, first in (("model", load_model(one_start)), ("critic", critic_of(one_start))):
        moved = 0.0
        one, other = getattr(whole, network), getattr(halves, network)
        for parameter, same, before in zip(one.parameters(), other.parameters(), first.parameters(), strict=True):
            assert torch.allclose(parameter, same, atol=1e-6)
            moved = max(moved, (parameter - before).abs().max().item())
        assert moved > 1e-3


def test_ppo_empty_and_single(one_start, tmp_path):
    """One completion per step, some empty, some without a reward: never a NaN."""
    calls = iter(range(1000))

    def reward(completions, **_):
        return [None if next(calls) % 3 == 0 else 1.0 for _ in completions]

    trainer = make_trainer(
        one_start, tmp_path, reward=reward, per_device_train_batch_size=1, steps_per_generation=1, max_steps=12
    )
    trainer.generation_config.eos_token_id = trainer.eos_token_ids = list(range(0, 128))
    trainer.train()
    assert 1 in log_rows(trainer, "completions/min_length")
    assert all(math.isfinite(loss) for loss in log_rows(trainer, "loss"))
    for network in (trainer.model, trainer.critic):
        assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_completions_without_a_reward_do_not_change_the_model(one_start, tmp_path):
    trainer = make_trainer(
        one_start,
        tmp_path,
        cls=RecordingTrainer,
        reward=lambda completions, **_: [None] * len(completions),
        max_steps=2,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert not trainer.seen[0]["loss_mask"].any()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.model.parameters(), strict=True))


def test_losses_equal_the_papers_equations():
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    loss, clipped = clipped_policy_loss(ratio, advantages, 0.2, 0.2)
    assert loss.tolist() == pytest.approx([-1.2, 1.5, -0.5, 0.8, -2.2])
    assert clipped.tolist() == [True, False, False, True, False]
    values, old, returns = torch.tensor([1.0, 0.1, -1.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 1.0])
    loss, clipped = clipped_value_loss(values, old, returns, 0.2)
    assert loss.tolist() == pytest.approx([0.32, 0.405, 2.0])
    assert clipped.tolist() == [True, False, False]


def test_the_policy_loss_is_trls_on_the_same_batch(one_start, tmp_path):
    trainer = make_trainer(one_start, tmp_path, cls=RecordingTrainer, max_steps=2, loss_type="dapo", vf_coef=0.0)
    losses = []
    ours = trainer._compute_loss

    def both(model, inputs):
        beta, trainer.beta = trainer.beta, 0.0
        theirs = GRPOTrainer._compute_loss(trainer, model, inputs)
        trainer.beta = beta
        losses.append((ours(model, inputs).item(), theirs.item()))
        return ours(model, inputs)

    trainer._compute_loss = both
    trainer.train()
    assert len(losses) == 2
    for one, other in losses:
        assert one == pytest.approx(other, abs=1e-6)
    assert losses[1][0] != pytest.approx(losses[0][0], abs=1e-3)


def test_ppo_learns_a_toy_verifiable_task(one_start, tmp_path):
    trainer = make_trainer(
        one_start,
        tmp_path,
        max_steps=120,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        critic_learning_rate=1e-2,
        beta=0.0,
        prompts=PROMPTS * 4,
    )
    trainer.train()
    rewards = log_rows(trainer, "reward")
    assert sum(rewards[:3]) / 3 < 0.4
    assert sum(rewards[-3:]) / 3 > 0.85


def test_ppo_trains_with_gradient_checkpointing_and_bf16(start, tmp_path):
    trainer = make_trainer(
        start, tmp_path, cls=RecordingTrainer, bf16=True, gradient_checkpointing=True, lora=LORA, max_steps=3
    )
    trainer.train()
    assert ratio_error(trainer) <= 1e-6
    assert log_rows(trainer, "kl")[0] == 0.0
    assert all(math.isfinite(loss) for loss in log_rows(trainer, "loss"))


@pytest.mark.parametrize("changed", [{"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.1}, {"repetition_penalty": 1.1}])
def test_sampling_filters_are_refused(tmp_path, changed):
    with pytest.raises(ValueError, match="only a temperature"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **changed)


def test_too_few_prompts_for_one_rollout_are_reported(one_start, tmp_path):
    with pytest.raises(UserError, match="8 prompts"):  # TRL would train for 0 steps without an error
        make_trainer(one_start, tmp_path, per_device_train_batch_size=5)


def test_ppo_needs_no_groups_but_still_checks_batch_sizes(tmp_path):
    common = {"output_dir": str(tmp_path), "use_cpu": True, "bf16": False}
    args = PPOConfig(per_device_train_batch_size=1, **common)
    assert (args.num_generations, args.generation_batch_size) == (1, 1)
    with pytest.raises(ValueError, match="divisible"):
        PPOConfig(per_device_train_batch_size=2, generation_batch_size=3, **common)


def test_trl_still_has_the_private_hooks_that_ppo_uses():
    """They are private: if one of them changes, PPO must be checked against the new TRL."""
    expected = {
        "_calculate_rewards": ["inputs", "prompts", "completions", "completion_ids_list"],
        "_generate_and_score_completions": ["inputs"],
        "_generate_single_turn": ["prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        "_compute_loss": ["model", "inputs"],
        "_prepare_inputs": ["generation_batch"],
        "_get_train_sampler": ["dataset"],
        "_load_optimizer_and_scheduler": ["checkpoint"],
        "_save_optimizer_and_scheduler": ["output_dir"],
        "training_step": ["model", "inputs", "num_items_in_batch"],
    }
    for name, parameters in expected.items():
        found = inspect.signature(getattr(GRPOTrainer, name)).parameters
        assert list(found)[1:] == parameters, name
    scoring = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)[1:]
    assert scoring[:6] == ["model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"]
    source = inspect.getsource(GRPOTrainer)
    for used in (
        "self._buffered_inputs[self._step % self.args.steps_per_generation]",
        "self.eos_token_ids",
        "frac_reward_zero_std",
    ):
        assert used in source, used
