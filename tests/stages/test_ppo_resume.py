"""A resumed PPO run is bit-exact at any step: model, critic, both optimizers, partly used rollouts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.ppo_runs import LORA, PROMPTS, critic_of, log_rows, make_start, make_trainer
from trl import GRPOConfig

from llm_lab.errors import UserError
from llm_lab.hf.load import load_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.stages.rollouts import RolloutTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),  # TRL uses the old name
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning"),
]
# Two minibatches and two passes: a rollout lasts four updates, and eight prompts are an epoch of four updates.
STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return make_start(tmp_path_factory.mktemp("start"))


def state_of(trainer):
    """Return the complete state of a PPO run as tensors."""
    tensors = {f"model.{name}": p for name, p in trainer.model.named_parameters()}
    tensors |= {f"critic.{name}": p for name, p in trainer.critic.named_parameters()}
    optimizers = {"model": trainer.optimizer, "critic": trainer.critic_optimizer}
    for network, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{network}.optimizer.{index}.{name}": value for name, value in moments.items()}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {},  # saved in the middle of an epoch and of a rollout
        {"save_steps": 4},  # saved between two rollouts, at the end of an epoch
        {"save_steps": 5, "max_steps": 10},  # saved in the second epoch, resumed into the third
        {"max_steps": 3, "save_steps": 1, "gradient_accumulation_steps": 2},
        {"lora": LORA},
    ],
    ids=["half a rollout", "end of an epoch", "second epoch", "accumulated", "lora"],
)
def test_resume_bitwise(start, tmp_path, changes):
    settings = STEPS | changes
    whole = make_trainer(start, tmp_path, **settings)
    whole.train()
    expected, first = state_of(whole), settings["save_steps"]
    rest = make_trainer(start, tmp_path, **settings)
    rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{first}"))
    assert rest.state.global_step == settings["max_steps"]
    assert_same(state_of(rest), expected)
    rewards = log_rows(whole, "loss")
    assert log_rows(rest, "loss") == rewards
    assert len(rewards) == settings["max_steps"]


def test_a_resumed_run_keeps_the_initial_model_as_its_reference(start, tmp_path):
    trainer = make_trainer(start, tmp_path, max_steps=5, save_strategy="steps", save_steps=4)
    trainer.train()
    resumed = make_trainer(start, tmp_path, max_steps=5, save_strategy="steps", save_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert log_rows(resumed, "kl") == log_rows(trainer, "kl")
    assert log_rows(resumed, "kl")[1] != 0


def test_checkpoints_are_not_pickled_and_hold_rollouts_only_if_needed(start, tmp_path):
    make_trainer(start, tmp_path, max_steps=4, save_strategy="steps", save_steps=3).train()
    files = {file.name for file in (tmp_path / "checkpoint-3").iterdir()}
    assert {"critic.safetensors", "critic_optimizer.pt", "rollout-0.safetensors"} <= files
    assert not (tmp_path / "checkpoint-4" / "rollout-0.safetensors").exists()
    for file in (tmp_path / "checkpoint-3").glob("critic*.pt"):
        torch.load(file, weights_only=True)


def test_a_run_is_not_resumed_with_another_critic(start, tmp_path):
    make_trainer(start, tmp_path, max_steps=2, save_strategy="steps", save_steps=2).train()
    other = make_trainer(start, tmp_path, critic=critic_of(start, lora=LORA), max_steps=3)
    with pytest.raises(UserError, match="different parameters"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("save_steps", [3, 4, 5])
def test_grpo_resumes_bitwise_in_the_middle_of_a_rollout(start, tmp_path, save_steps):
    from datasets import Dataset

    def make():
        args = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            per_device_train_batch_size=4,
            num_generations=4,
            steps_per_generation=2,
            num_iterations=2,
            max_completion_length=6,
            max_steps=9,
            beta=0.1,
            learning_rate=3e-3,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            save_strategy="steps",
            save_steps=save_steps,
        )
        return RolloutTrainer(
            model=load_model(start),
            args=args,
            reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
            train_dataset=Dataset.from_dict({"prompt": PROMPTS[:4]}),
            processing_class=load_tokenizer(start),
        )

    whole = make()
    whole.train()
    rest = make()
    rest.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{save_steps}"))
    for (name, tensor), same in zip(whole.model.named_parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(tensor, same), name
    assert log_rows(whole, "kl")[0] == 0.0
    assert log_rows(whole, "loss") == log_rows(rest, "loss")


def test_prompt_order_differs_by_epoch_and_not_by_run(start, tmp_path):
    orders = []
    for _ in range(2):
        trainer = make_trainer(start, tmp_path)
        sampler = trainer._get_train_sampler()
        epochs = []
        for epoch in (0.0, 1.0, 1.25):
            trainer.state.epoch = epoch
            epochs.append(list(sampler))
        orders.append(epochs)
    assert orders[0] == orders[1]
    first, second, second_resumed = orders[0]
    assert first != second
    assert second == second_resumed
    assert sorted(set(first)) == list(range(len(PROMPTS)))


@pytest.mark.slow
def test_two_processes_have_the_same_model_and_critic_and_resume_bitwise(start, tmp_path):
    script = Path(__file__).parents[1] / "support" / "ppo_runs.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, script, start, tmp_path], capture_output=True, text=True, timeout=240)
    digests = re.findall(r"WEIGHTS (\w+)", done.stdout)
    assert len(digests) == 4, done.stderr[-2000:]
    assert len(set(digests)) == 1
