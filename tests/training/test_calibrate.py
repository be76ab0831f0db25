"""The time and memory of a plan, from typical values or from measurements; and the attention kernel, batch size and
gradient checkpointing that are derived for a machine."""

import importlib.util
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, write_text
from support.listeners import Handlers

from llm_lab.cli import main
from llm_lab.errors import MachineError
from llm_lab.estimate.cost import COMPILE_SECONDS, FULL, estimate_pretraining, memory_by_part
from llm_lab.estimate.machine import Gpu, Machine, find_machine
from llm_lab.estimate.measurements import Measurement, find_measurement, keep_measurement, measurements_folder
from llm_lab.hf.configs import config_of_parts
from llm_lab.hf.load import build_from_config
from llm_lab.recipe.resolve import estimate_again, require_device, resolve
from llm_lab.runner import run
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.glossary import name_of
from llm_lab.runs.processes import peak_memory_bytes, reset_peak_memory
from llm_lab.training import calibrate as calibration
from llm_lab.training.calibrate import calibrate, run_trial, trial_seconds
from llm_lab.training.loss import autocast

GIB = 2**30
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * GIB, (9, 0))
LAPTOP = Machine((), "a CPU", 4, 16 * GIB, has_compiler=True, cpu_bf16_is_fast=False)
WORKSTATION = replace(LAPTOP, gpus=(H100,), memory_bytes=128 * GIB)
WITH_FLASH = replace(WORKSTATION, has_flash_attention=True)


def values_of(resolved):
    return resolved.recipe.model_dump(by_alias=True)


def keep(resolved, **numbers):
    keep_measurement(Measurement(**numbers), values_of(resolved), resolved.shape, resolved.machine)


class Notes(Handlers):
    def __init__(self):
        self.said = []

    def notice(self, text):
        self.said.append(text)


# Typical values, or measurements


def test_a_plan_uses_typical_values_until_there_is_a_measurement():
    raw = tiny_recipe(**{"train.max_steps": 1000})
    before = resolve(raw, machine=LAPTOP)
    assert before.estimate.basis == "based on typical values"
    keep(before, source="trial", step_seconds=0.5, memory_bytes=3 * GIB)
    after = resolve(raw, machine=LAPTOP).estimate
    assert after.basis == "measured on this machine"
    assert after.seconds_by_part["training"] == pytest.approx(500)
    assert after.memory_bytes == 3 * GIB


@pytest.mark.parametrize(
    "change",
    [
        {"train.per_device_train_batch_size": 8},
        {"train.max_length": 32},
        {"train.dtype": "bfloat16"},
        {"train.gradient_checkpointing": True},
        {"train.gradient_accumulation_steps": 2},
        {"train.compile": True},
        {"model.hidden_size": 64},
        {"model.position_embedding": "alibi"},
        {"model.dropout": 0.1},
        {"optimizer": {"name": "muon"}},
    ],
)
def test_a_measurement_is_not_used_for_other_settings(change):
    keep(resolve(tiny_recipe(), machine=LAPTOP), source="trial", step_seconds=0.5)
    assert resolve(tiny_recipe(**change), machine=LAPTOP).estimate.basis == "based on typical values"


def test_a_measurement_is_not_used_for_another_machine_or_torch_version(monkeypatch):
    keep(resolve(tiny_recipe(), machine=LAPTOP), source="trial", step_seconds=0.5)
    for other in (replace(LAPTOP, cpu_name="another"), replace(LAPTOP, cpu_cores=8), replace(LAPTOP, processes=2)):
        assert resolve(tiny_recipe(), machine=other).estimate.basis == "based on typical values"
    assert resolve(tiny_recipe(**{"optimizer.learning_rate": 0.5, "seed": 3}), machine=LAPTOP).estimate.measurement
    monkeypatch.setattr("llm_lab.estimate.measurements._version", lambda package: "another")
    assert resolve(tiny_recipe(), machine=LAPTOP).estimate.basis == "based on typical values"


def test_a_later_measurement_keeps_values_it_did_not_measure():
    resolved = resolve(tiny_recipe(), machine=LAPTOP)
    keep(resolved, source="trial", step_seconds=0.5, sample_seconds_per_token=0.01, memory_bytes=5)
    keep(resolved, source="run", step_seconds=0.4)
    kept = find_measurement(values_of(resolved), resolved.shape, LAPTOP)
    assert kept == Measurement("run", 0.4, memory_bytes=5, sample_seconds_per_token=0.01)


def test_a_broken_cache_file_is_ignored():
    resolved = resolve(tiny_recipe(), machine=LAPTOP)
    keep(resolved, source="trial", step_seconds=0.5)
    (file,) = measurements_folder().iterdir()
    for text in ("", "[]", '{"measurement": {"unheard": 1}}'):
        file.write_text(text)
        assert resolve(tiny_recipe(), machine=LAPTOP).estimate.basis == "based on typical values"


def test_the_time_includes_evaluation_samples_saving_and_compiling(in_tmp_path):
    Path("text.txt").write_text("x" * 10_000)
    raw = tiny_recipe(
        validation={"fraction": 0.1},
        samples={"prompts": ["a", "b"], "max_new_tokens": 7},
        **{"train.max_steps": 25, "train.compile": True},
    )
    resolved = resolve(raw, machine=LAPTOP)
    keep(
        resolved,
        source="trial",
        step_seconds=2.0,
        evaluation_seconds_per_token=0.01,
        sample_seconds_per_token=0.5,
        compile_seconds=40.0,
    )
    parts = resolve(raw, machine=LAPTOP).estimate.seconds_by_part
    assert parts["training"] == 25 * 2.0
    assert parts["evaluation"] == pytest.approx(3 * 1000 * 0.01), "at steps 10, 20 and 25, on a tenth of 10,000 bytes"
    assert parts["samples"] == pytest.approx(3 * 2 * 7 * 0.5)
    assert parts["saving"] > 0
    assert parts["compiling"] == 40.0
    assert resolve(raw, machine=LAPTOP).estimate.wall_seconds == pytest.approx(sum(parts.values()))


def test_the_plan_of_a_resumed_run_counts_the_remaining_steps():
    raw = tiny_recipe(**{"train.max_steps": 100})
    whole = resolve(raw, machine=LAPTOP)
    rest = estimate_again(whole, first_step=75).estimate
    assert rest.tokens == whole.estimate.tokens / 4
    for part, evaluations in (("training", 25 / 100), ("evaluation", 3 / 10), ("samples", 3 / 10), ("saving", 3 / 10)):
        assert rest.seconds_by_part[part] == pytest.approx(evaluations * whole.estimate.seconds_by_part[part]), part
    assert estimate_again(whole, first_step=100).estimate.wall_seconds == 0


# The trial steps


def test_a_trial_runs_only_if_it_is_cheap_and_useful(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert trial_seconds(resolve(tiny_recipe(), machine=LAPTOP)) == 0, "the run is too short"
    raw = tiny_recipe(**{"train.max_steps": 20_000})
    long = resolve(raw, machine=LAPTOP)
    assert 0 < trial_seconds(long) <= 0.05 * long.estimate.wall_seconds
    compiled = resolve(tiny_recipe(**{"train.max_steps": 15_000, "train.compile": True}), machine=LAPTOP)
    assert compiled.estimate.wall_seconds < 20 * COMPILE_SECONDS["cpu"]
    assert trial_seconds(compiled) == 0, "compiling twice costs too much"
    keep(long, source="trial", step_seconds=0.05)
    assert trial_seconds(resolve(raw, machine=LAPTOP)) == 0, "there is a measurement"


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "sophia"])
def test_a_trial_measures_a_step_an_evaluation_a_sample_and_the_memory(optimizer):
    resolved = resolve(tiny_recipe(optimizer={"name": optimizer}, **{"train.max_steps": 5000}))
    found = run_trial(resolved, 0.1)
    # An evaluation of a batch takes less than a step; on a busy machine either may have been interrupted.
    assert 0 < found.evaluation_seconds_per_token * resolved.estimate.tokens_per_step < 5 * found.step_seconds < 5
    assert 0 < found.sample_seconds_per_token < 0.5
    assert found.memory_bytes > 50 * 2**20
    assert (found.source, found.compile_seconds) == ("trial", None)


def test_one_slow_step_does_not_decide_what_a_trial_measures(monkeypatch):
    pauses = iter([0.3, 0.3])  # of the first step, which warms up, and of the second one

    def build(*arguments, **options):
        model = build_from_config(*arguments, **options)
        model.register_forward_pre_hook(lambda *_: time.sleep(next(pauses, 0.0)))
        return model

    monkeypatch.setattr("llm_lab.hf.load.build_from_config", build)
    found = run_trial(resolve(tiny_recipe(**{"train.max_steps": 5000})), 0.01)  # it ends after the first step
    assert found.step_seconds < 0.2


def test_a_trial_restores_every_random_generator():
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    run_trial(resolve(tiny_recipe(**{"model.dropout": 0.1, "train.max_steps": 5000})), 0.05)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_a_run_after_a_trial_has_the_same_losses(in_tmp_path, monkeypatch):
    write_text("text.txt")

    def losses(facts):
        return [
            (row["step"], row.get("loss"), row.get("eval_loss")) for row in RunFolder(Path(facts["path"])).metrics()
        ]

    untried = run(tiny_recipe(**{"model.dropout": 0.1}))
    assert untried["predicted"]["basis"] == "based on typical values"
    monkeypatch.setattr(calibration, "MIN_RUN_SECONDS", 0.0)
    notes = Notes()
    tried = run(tiny_recipe(**{"model.dropout": 0.1}), listener=notes)
    assert tried["predicted"]["basis"] == "measured on this machine"
    assert losses(tried) == losses(untried)
    assert any("measuring a few training steps" in text for text in notes.said)
    again = Notes()
    assert losses(run(tiny_recipe(**{"model.dropout": 0.1}), listener=again)) == losses(untried)
    assert not any("measuring" in text for text in again.said), "the trial runs only once"
    assert not [path for path in Path("checkpoints").glob("*/*") if "trial" in path.name]


def test_calibration_reports_its_result_and_updates_the_plan(monkeypatch):
    monkeypatch.setattr(calibration, "MIN_RUN_SECONDS", 0.0)
    notes = Notes()
    resolved = resolve(tiny_recipe(**{"train.max_steps": 500}))
    after = calibrate(resolved, notes)
    assert after.estimate.basis == "measured on this machine"
    assert resolve(tiny_recipe(**{"train.max_steps": 500})).estimate == after.estimate, "the next plan uses it too"
    assert "measured: " in notes.said[-1]
    assert "per step" in notes.said[-1]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")]
)
def test_a_trial_without_enough_memory_on_a_cpu_leads_to_smaller_batches(monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(calibration, "MIN_RUN_SECONDS", 0.0)
    monkeypatch.setattr(calibration, "_train", fail)
    notes = Notes()
    resolved = resolve(tiny_recipe(**{"train.max_steps": 500}))
    assert calibrate(resolved, notes) is resolved
    assert "the run starts with smaller batches" in notes.said[-1]


def test_another_error_in_a_trial_is_not_taken_for_a_lack_of_memory(monkeypatch):
    def fail(*args):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(calibration, "_train", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_trial(resolve(tiny_recipe(**{"train.max_steps": 500})), 0.1)


def test_the_trial_of_a_checkpoint_uses_its_shape(in_tmp_path, monkeypatch):
    write_text("text.txt")
    run(tiny_recipe())
    monkeypatch.setattr(calibration, "MIN_RUN_SECONDS", 0.0)
    raw = tiny_recipe(model={"checkpoint": "checkpoints/tiny"}, name="on")
    raw["train"]["max_steps"] = 5
    raw["scheduler"] = {}
    assert run(raw)["predicted"]["basis"] == "measured on this machine"


# Predicted against actual


def test_a_run_records_predicted_and_actual_time_and_memory(in_tmp_path):
    write_text("text.txt")
    facts = run(tiny_recipe(**{"train.max_steps": 120}))
    for key in ("wall_seconds", "memory_bytes"):
        assert facts["predicted"][key] > 0
        assert facts["results"][key] > 0
    assert json.loads(Path(facts["path"], "run.json").read_text())["predicted"] == facts["predicted"]
    report = Path(facts["path"], "report.md").read_text().split("actual / predicted")[1]
    for key in ("wall_seconds", "memory_bytes"):
        line = next(line for line in report.splitlines() if line.startswith(f"| {name_of(key)} |"))
        assert float(line.split("|")[4]) == pytest.approx(facts["results"][key] / facts["predicted"][key], abs=0.006)
    plan = resolve(tiny_recipe(**{"train.max_steps": 120})).estimate
    assert plan.basis == "measured in the last similar run on this machine"
    assert plan.seconds_by_part["training"] <= facts["results"]["wall_seconds"]


def test_the_plan_of_a_resumed_run_shows_its_first_step(in_tmp_path, capsys):
    write_text("text.txt")
    facts = run(tiny_recipe())
    assert facts["results"]["step"] == 20
    last = RunFolder(Path(facts["path"])).checkpoints()[-1][1]
    last.rename(last.with_name("set-aside"))
    words = ["run", f"{facts['path']}/recipe.yaml", "--resume"]
    assert main([*words, "--dry-run"]) == 0
    dry = " ".join(capsys.readouterr().out.split())
    assert main(words) == 0
    real = " ".join(capsys.readouterr().out.split())
    for said in (dry, real):
        assert "Plan: tiny · " in said
        assert "resumes after step 10;" in said
        assert "10 steps × 4 sequences of 16 tokens" in said
        assert "(measured in this run so far)" in said


def test_the_peak_memory_is_reset_between_stages():
    reset_peak_memory("cpu")
    before = peak_memory_bytes("cpu")
    held = np.ones(30_000_000)
    assert peak_memory_bytes("cpu") - before > 0.9 * held.nbytes
    del held
    reset_peak_memory("cpu")
    assert peak_memory_bytes("cpu") - before < 120_000_000


# The kernel


@pytest.mark.parametrize(
    ("machine", "changes", "kernel", "reason"),
    [
        (LAPTOP, {"device": "cpu"}, "sdpa", "fused, and supports"),
        (WORKSTATION, {}, "sdpa", "flash-attn is not installed"),
        (WITH_FLASH, {}, "flash_attention_2", "flash-attn is installed"),
        (WITH_FLASH, {"model.sliding_window": 8}, "flash_attention_2", "skips what the sliding window masks"),
        (WITH_FLASH, {"device": "cpu"}, "sdpa", "fused, and supports"),
        (WITH_FLASH, {"model.position_embedding": "alibi"}, "sdpa", "drop ALiBi's position penalties"),
        (WITH_FLASH, {"train.document_mask": True}, "sdpa", "does not support document masks"),
        (WITH_FLASH, {"train.dtype": "float32"}, "sdpa", "does not support float32"),
        (WITH_FLASH, {"model.head_dim": 512}, "sdpa", "supports head sizes up to 256"),
    ],
)
def test_the_derived_attention_kernel_is_installed_and_supports_the_parts(machine, changes, kernel, reason):
    resolved = resolve(tiny_recipe(**{"device": "cuda", "train.dtype": "bfloat16"} | changes), machine=machine)
    assert resolved.values["train"]["attn_implementation"] == kernel
    assert reason in resolved.origins["train.attn_implementation"].reason
    require_device(resolved)


def test_flash_attention_is_not_derived_for_a_config_with_alibi(in_tmp_path):
    config = {"model_type": "llm_lab", "position_embedding": "alibi", "hidden_size": 32, "num_attention_heads": 2}
    Path("config.json").write_text(json.dumps(config))
    raw = tiny_recipe(**{"device": "cuda", "model": {"config": "config.json"}, "train.dtype": "bfloat16"})
    assert resolve(raw, machine=WITH_FLASH).values["train"]["attn_implementation"] == "sdpa"


def test_requested_flash_attention_that_is_not_installed_is_a_machine_error():
    raw = tiny_recipe(**{"device": "cuda", "train.dtype": "bfloat16", "train.attn_implementation": "flash_attention_2"})
    with pytest.raises(MachineError, match=r"flash-attn is not installed.*leave the key out"):
        require_device(resolve(raw, machine=WORKSTATION))
    require_device(resolve(raw, machine=WITH_FLASH))
    assert find_machine().has_flash_attention == (importlib.util.find_spec("flash_attn") is not None)


# Batch size and gradient checkpointing


def large(**train):
    return {
        "stage": "pretrain",
        "device": "cuda",
        "data": [{"path": "a.txt"}],
        "model": {"size": "large"},
        "train": train,
    }


def gpu(gib):
    return replace(WORKSTATION, gpus=(replace(H100, memory_bytes=int(gib * GIB)),))


def test_gradient_checkpointing_is_derived_only_if_nothing_else_fits():
    roomy = resolve(large(per_device_train_batch_size=4), machine=gpu(80))
    assert roomy.values["train"]["gradient_checkpointing"] is False
    assert roomy.origins["train.gradient_checkpointing"].reason == "4 sequences fit without it"
    need = roomy.estimate.memory_bytes
    tight = resolve(large(per_device_train_batch_size=4), machine=gpu(0.97 * need / FULL / GIB))
    assert tight.values["train"]["gradient_checkpointing"] is True
    assert "4 sequences would take" in tight.origins["train.gradient_checkpointing"].reason
    assert tight.estimate.fits
    asked = resolve(large(per_device_train_batch_size=4, gradient_checkpointing=False), machine=tight.machine)
    assert not asked.estimate.fits, "requested values are kept, and refused"


def test_the_batch_size_is_reduced_before_gradient_checkpointing():
    plenty = resolve(large(), machine=gpu(80)).values["train"]
    assert plenty["gradient_checkpointing"] is False
    one_row = resolve(large(per_device_train_batch_size=1), machine=gpu(80)).estimate.memory_bytes
    little = resolve(large(), machine=gpu(1.02 * one_row / 0.75 / GIB)).values["train"]
    assert (little["gradient_checkpointing"], little["per_device_train_batch_size"]) == (False, 1)
    less = resolve(large(), machine=gpu(0.98 * one_row / 0.75 / GIB))
    assert less.values["train"]["gradient_checkpointing"] is True
    assert less.values["train"]["per_device_train_batch_size"] > 1, "with gradient checkpointing more rows fit"
    assert less.estimate.fits


def test_gradient_checkpointing_saves_only_activation_memory():
    shape = resolve(large(), machine=WORKSTATION).shape
    plain, saved = (
        memory_by_part(shape, rows=4, length=1024, optimizer="adamw", dtype="bfloat16", checkpointing=on)
        for on in (False, True)
    )
    assert saved.pop("activations") < plain.pop("activations") / 3
    assert saved == plain


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"activation": "gelu", "norm": "layernorm", "position_embedding": "alibi"},
        {"activation": "relu", "attention": "mha"},
        {"qk_norm": True},
        {"activation": "relu2", "residual_scalars": True, "value_embeddings": True},
        {"activation": "geglu", "position_embedding": "learned"},
        {"num_experts": 8},
    ],
)
def test_estimated_activations_match_what_autograd_keeps(parts, dtype):
    rows, length, kept = 4, 128, []
    for layers in (1, 3):
        model = {"hidden_size": 128, "num_hidden_layers": layers, "max_position_embeddings": length, **parts}
        resolved = resolve(tiny_recipe(model=model), machine=LAPTOP)
        shape = resolved.shape
        built = build_from_config(config_of_parts(resolved.recipe.model.model_dump(), 257)).train()
        weights = {parameter.untyped_storage().data_ptr() for parameter in built.parameters()}
        seen = {}

        def pack(tensor, weights=weights, seen=seen):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                seen[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        ids = torch.zeros((rows, length), dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast("cpu", dtype):
            built.model(input_ids=ids, use_cache=False)
        kept.append(sum(size for _, size in seen.values()))
    if dtype == "bfloat16":  # bf16 copies of the matrices are counted with the weights
        kept[1] -= 2 * shape.matrix_parameters * 2 // 3
    by_part = memory_by_part(shape, rows=rows, length=length, optimizer="adamw", dtype=dtype, checkpointing=False)
    assert by_part["activations"] / 3 == pytest.approx((kept[1] - kept[0]) / 2, rel=0.35)


def test_the_cost_of_an_unknown_model_is_not_estimated():
    raw = values_of(resolve(tiny_recipe(), machine=LAPTOP))
    unknown = estimate_pretraining(raw, None, LAPTOP)
    assert (unknown.wall_seconds, unknown.parameters, unknown.memory_bytes) == (None, None, 0)
