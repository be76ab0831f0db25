"""A resumed LoRA run is bit-exact: the same adapter, and it still trains."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support.adapters import lora, save_base, with_chat_tokens

from llm_lab.events import ignore
from llm_lab.hf.load import load_model
from llm_lab.hf.lora_layers import attach_lora, describe_trainable
from llm_lab.hf.save import save_model
from llm_lab.optim.factory import build_optimizer
from llm_lab.recipe.optimizers import AdamW
from llm_lab.recipe.resolve import resolve
from llm_lab.runs.folder import RunFolder, find_model
from llm_lab.training.trainer import Interruption, LabTrainer, training_arguments

STEPS = 20


def rows(count: int = STEPS * 2, length: int = 12):
    ids = torch.randint(259, (count, length), generator=torch.Generator().manual_seed(2))
    return [{"input_ids": row, "labels": row} for row in ids]


def make_trainer(folder: Path, base: Path, *, use_dora: bool = False, resumed: bool = False) -> LabTrainer:
    """Create all objects again, as a new process does."""
    model, tokenizer = with_chat_tokens(load_model(base))
    model = attach_lora(model, lora(dropout=0.1, use_dora=use_dora), seed=1)
    if resumed:
        with torch.no_grad():  # the weights must come from the checkpoint, not from the seed
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
    sizes = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "max_length": 12}
    steps = {"max_steps": STEPS, "logging_steps": 5, "save_steps": 10}
    raw = {"stage": "sft", "device": "cpu", "model": {"checkpoint": str(base)}, "data": [{"path": "rows.jsonl"}]}
    recipe = resolve({**raw, "train": {"dtype": "float32", **sizes, **steps}}).recipe
    run = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return LabTrainer(
        run=run,
        listener=ignore,
        interruption=Interruption(),
        eval_every=100,
        tokens_before=lambda step: 24 * step,
        wall_seconds_before=0.0,
        save_total_limit=2,
        evaluate_step=lambda step: None,
        save=partial(save_model, model, tokenizer=tokenizer),
        build_optimizer=partial(build_optimizer, options=AdamW(learning_rate=0.01)),
        learning_rate_factor=lambda step: 1 - step / STEPS,
        model=model,
        args=training_arguments(run.steps_path, device=recipe.device, seed=3, train=recipe.train),
        train_dataset=rows(),
    )


def trained(trainer: LabTrainer) -> dict[str, torch.Tensor]:
    model = trainer.model
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_resumed_adapter_run_is_bit_exact(use_dora, tmp_path):
    base = tmp_path / "base"
    save_base(base, tie_word_embeddings=not use_dora)
    whole = make_trainer(tmp_path / "whole", base, use_dora=use_dora)
    start = trained(whole)
    torch.manual_seed(0)
    whole.train()
    expected = trained(whole)
    assert all(not torch.equal(start[name], expected[name]) for name in start), "something was not trained"

    # The checkpoint of step 10 in an otherwise empty run folder.
    checkpoint = tmp_path / "stopped" / "steps" / "checkpoint-10"
    checkpoint.parent.mkdir(parents=True)
    (tmp_path / "whole" / "steps" / "checkpoint-10").rename(checkpoint)
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not list(checkpoint.glob("model*.safetensors"))
    resumed = make_trainer(tmp_path / "stopped", base, use_dora=use_dora, resumed=True)
    names = describe_trainable(resumed.model).names
    torch.manual_seed(77)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.state.global_step == STEPS
    assert describe_trainable(resumed.model).names == names == start.keys()
    found = trained(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_checkpoint_of_an_adapter_can_be_loaded(tmp_path):
    save_base(tmp_path / "base")
    trainer = make_trainer(tmp_path / "run", tmp_path / "base")
    trainer.train()
    folder = find_model(tmp_path / "run")
    assert folder.name == f"checkpoint-{STEPS}"
    ids = torch.tensor([[257, 5, 9, 258]])
    torch.testing.assert_close(load_model(folder)(ids).logits, trainer.model.eval()(ids).logits, rtol=0, atol=1e-6)
