"""Exports by command and recipe: what is written, that it is verified, and that verification can fail."""

import importlib.metadata
import json
import os
import random
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_recipe, write_text
from safetensors.torch import load_file, save_file
from support.llama_cpp import HAS_LLAMA_CPP, NO_LLAMA_CPP
from support.post_runs import post_recipe, write_base
from transformers import AutoModelForCausalLM

from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.estimate.compatibility import LLAMA_CPP, TRANSFORMERS
from llm_lab.export.gguf_file import LEADING_SPACE, LLAMA3, QWEN2, SPACE, read_tokenizer, write_gguf
from llm_lab.export.plan import plan_export
from llm_lab.export.verify import (
    MIN_AGREEMENT,
    TEXTS,
    TOLERANCES,
    Answers,
    ask,
    ask_others,
    compare_answers,
    make_probe,
)
from llm_lab.hf.load import load_model
from llm_lab.hf.save import save_model, set_special_tokens, to_native
from llm_lab.hf.tokenizers import load_tokenizer, make_byte_tokenizer, train_bpe
from llm_lab.runner import load, run
from llm_lab.runs.folder import RunFolder, find_model

pytestmark = pytest.mark.usefixtures("quick_verification")
GPT2_TOKENIZER = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2-tokenizer"


def write_reward_model(folder: str) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    sizes = {"vocab_size": 257, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    make_byte_tokenizer().save_pretrained(folder)


def facts_of(name: str) -> dict:
    return RunFolder(Path("checkpoints") / name).facts()


def write_run(name: str = "born", **parts) -> str:
    """Write a run with a model, as training does."""
    write_base(f"checkpoints/{name}/model", **parts)
    RunFolder(Path("checkpoints") / name).update(name=name, stage="pretrain", status="done", created_at=1.0)
    return name


def test_a_run_is_exported_to_gguf_and_verified_in_both_run_json_files(in_tmp_path, capsys):
    write_run()
    assert main(["export", "born", "--to", "gguf"]) == 0
    output, facts = capsys.readouterr().out, facts_of("born-gguf")
    file = Path("checkpoints/born-gguf/gguf/born-f32.gguf")
    assert file.is_file()
    assert f"Exported, verified: {file}" in output
    assert (file.parent / "README.md").is_file()
    proof = facts["proof"]
    assert (facts["status"], proof["verdict"]) == ("done", "proven")
    checks = {check["program"]: check for check in proof["checks"]}
    reader = checks["Transformers' reader of GGUF"]
    assert reader["verdict"] == "proven"
    assert reader["greedy_agreement"] == 1.0
    assert reader["relative_logit_difference"] < 1e-5
    assert reader["positions"] > 200
    assert reader["texts_alike"] == reader["texts"] > 10
    assert f"largest logit difference {reader['logit_difference']:.2g}" in output
    assert checks["llama.cpp"]["verdict"] == ("proven" if HAS_LLAMA_CPP else "not tried")
    assert facts["results"]["greedy_agreement"] >= 0.99
    version = importlib.metadata.version("transformers")
    assert f"Transformers' reader of GGUF {version}: verified" in output
    assert facts["parent"]["path"].endswith("born/model")
    (kept,) = facts_of("born")["exports"]
    assert (kept["to"], kept["weights"], kept["path"]) == ("gguf", "f32", str(file))
    assert kept["proof"] == proof


def test_custom_parts_are_exported_with_their_code(in_tmp_path, capsys):
    write_run(position_embedding="alibi", norm="layernorm", activation="gelu")
    assert main(["export", "born"]) == 0
    facts = facts_of("born-hf")
    (check,) = facts["proof"]["checks"]
    version = importlib.metadata.version("transformers")
    assert check["version"] == version
    for shown in (Path("checkpoints/born-hf/report.md"), find_model("born-hf") / "README.md"):
        assert f"Transformers {version}, written for 4.57 and 5" in shown.read_text()
    assert (check["verdict"], check["loaded_as"], check["logit_difference"]) == ("proven", "LabForCausalLM", 0.0)
    assert facts["export"]["loads"]["architecture"] is None
    assert "trust_remote_code" in capsys.readouterr().out
    folder = find_model("born-hf")
    files = {file.name for file in folder.iterdir()}
    assert {"modeling_lab.py", "configuration_lab.py", "README.md"} <= files
    assert files == {name for name, _ in plan_export("born").files}
    model, tokenizer = load("born-hf")
    assert model.config.vocab_size == len(tokenizer)
    # The error has the same reason as the plan why GGUF is not supported.
    assert main(["export", "born", "--to", "gguf"]) == 2
    assert "export.to = gguf: GGUF's Llama has no alibi, no layernorm, no gelu." in capsys.readouterr().err
    assert not Path("checkpoints/born-gguf").exists()


@pytest.mark.parametrize(
    ("weights", "dtype", "limit"),
    [("f16", "float16", 1e-3), pytest.param("bf16", "bfloat16", 1e-2, marks=pytest.mark.slow)],
)
def test_half_precision_halves_the_size(weights, dtype, limit, in_tmp_path):
    write_run()
    recipe = {"stage": "export", "name": "half", "device": "cpu", "model": {"checkpoint": "born"}}
    facts = run(recipe | {"export": {"weights": weights}})
    assert facts["proof"]["verdict"] == "proven"
    exact, half = load_model("checkpoints/born/model"), load_model("checkpoints/half/model", dtype=dtype)
    assert json.loads(Path("checkpoints/half/model/config.json").read_text())["dtype"] == dtype
    ids = torch.arange(20)[None]
    assert (half.float()(ids).logits - exact(ids).logits).abs().max() < limit * exact(ids).logits.abs().max() * 3
    before, after = (Path(f"checkpoints/{name}/model/model.safetensors").stat().st_size for name in ("born", "half"))
    assert after < 0.6 * before


def test_a_failed_verification_is_an_error_and_deletes_the_export(in_tmp_path, capsys):
    # Half precision is not exact, but the tolerance requires exact values.
    write_run()
    words = ["export", "born", "--to", "gguf", "--weights", "f16", "export.tolerance=1e-9"]
    assert main(words) == 1
    output, facts = capsys.readouterr().out, facts_of("born-gguf")
    assert "Verification failed" in output
    assert "Exported, verified" not in output
    assert (facts["status"], facts["proof"]["verdict"]) == ("failed", "failed")
    assert facts["proof"]["checks"][0]["logit_difference"] > 0
    assert not list(Path("checkpoints").rglob("*.gguf"))
    assert facts_of("born")["exports"][0]["proof"]["verdict"] == "failed"


@pytest.mark.slow
def test_a_failed_verification_of_an_export_to_a_folder_leaves_nothing_there(in_tmp_path, capsys):
    write_run()
    assert main(["export", "born", "--to", "gguf", "--weights", "f16", "export.tolerance=1e-9", "--out", "mine"]) == 1
    assert "Verification failed" in capsys.readouterr().err
    assert not Path("mine").exists()


def a_model(folder: str = "model", **parts):
    write_base(folder, **parts)
    return load_model(folder), load_tokenizer(folder)


def with_large_weights(model):
    """Make weights as large as after training, so that logits differ by more than rounding errors."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.15)
    return model


def test_an_export_that_no_program_can_load_here_is_not_called_verified(in_tmp_path, monkeypatch, capsys):
    # Only llama.cpp supports YaRN; without it, nothing is verified and nothing fails.
    write_run(position_embedding="yarn", rope_parameters={"factor": 4.0, "original_max_position_embeddings": 32})
    monkeypatch.setattr("llm_lab.export.verify.importlib.util.find_spec", lambda name: None)
    assert main(["export", "born", "--to", "gguf"]) == 0
    output = capsys.readouterr().out
    assert "Exported, not verified" in output
    assert "llama.cpp: not verified: llama-cpp-python is not installed: pip install 'llm-lab[llama-cpp]'" in output
    assert "Transformers: not verified" in output
    assert "YaRN" in output
    proof = facts_of("born-gguf")["proof"]
    assert proof["verdict"] == "not tried"
    assert {check["verdict"] for check in proof["checks"]} == {"not tried"}
    assert "**verified**" not in Path("checkpoints/born-gguf/gguf/README.md").read_text()


def checks_of(jobs: dict, weights: str = "f32") -> dict:
    """Load files in one new process; return the check of each. jobs: {(file, program): (ours, probe)}."""
    requests = [({"loader": name, "folder": ".", "file": file}, probe) for (file, name), (_, probe) in jobs.items()]
    return {
        key: compare_answers(ours, theirs, TOLERANCES[key[1]][weights], MIN_AGREEMENT[weights])
        for (key, (ours, _)), theirs in zip(jobs.items(), ask_others(requests), strict=True)
    }


def test_a_file_that_differs_from_the_model_fails_verification(in_tmp_path, monkeypatch):
    # A changed weight, a truncated file, and rows in a different order.
    from gguf import GGUFReader

    model, tokenizer = a_model()
    probe = make_probe(model, tokenizer)
    for name in ("whole", "broken", "cut"):
        write_gguf(to_native(model), tokenizer, Path(f"{name}.gguf"), weights="f32", name=name)
    reader = GGUFReader("broken.gguf", "r+")
    next(tensor for tensor in reader.tensors if tensor.name == "blk.0.attn_v.weight").data[0] += 0.5
    reader.data.flush()
    os.truncate("cut.gguf", 2000)
    monkeypatch.setattr("llm_lab.export.gguf_file.interleave_rotary", lambda values, heads: values)
    write_gguf(to_native(model), tokenizer, Path("order.gguf"), weights="f32", name="order")
    asked = ask(model, tokenizer, probe), probe
    checks = checks_of({(f"{name}.gguf", TRANSFORMERS): asked for name in ("whole", "broken", "cut", "order")})
    verdicts = {file.removesuffix(".gguf"): check.verdict for (file, _), check in checks.items()}
    assert verdicts == {"whole": "proven", "broken": "failed", "cut": "failed", "order": "failed"}
    assert "its logits differ" in checks["broken.gguf", TRANSFORMERS].describe()
    assert "does not load" in checks["cut.gguf", TRANSFORMERS].describe()


def test_each_weight_type_is_within_its_rounding(in_tmp_path):
    from gguf import GGUFReader

    model, tokenizer = a_model(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)
    with_large_weights(model)
    probe = make_probe(model, tokenizer)
    asked = ask(model, tokenizer, probe), probe
    bounds = {"f32": (0, 1e-5), "f16": (1e-5, 5e-3), "bf16": (1e-3, 4e-2), "q8_0": (1e-3, 0.1)}
    programs = [TRANSFORMERS, *([LLAMA_CPP] if HAS_LLAMA_CPP else [])]
    for weights in bounds:
        write_gguf(to_native(model), tokenizer, Path(f"{weights}.gguf"), weights=weights, name="model")
    requests = [
        ({"loader": program, "folder": ".", "file": f"{weights}.gguf"}, probe)
        for weights in bounds
        for program in programs
    ]
    answers = iter(ask_others(requests))
    for weights, (least, most) in bounds.items():
        for program in programs:
            check = compare_answers(asked[0], next(answers), TOLERANCES[program][weights], MIN_AGREEMENT[weights])
            assert check.verdict == "proven", (weights, program, check.describe())
            if program == TRANSFORMERS:
                assert least <= check.relative_logit_difference < most, weights
        kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(f"{weights}.gguf").tensors}
        assert kinds["token_embd.weight"] == kinds["blk.1.ffn_down.weight"] == weights.upper()
        assert kinds["output_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("has_experts", "changed", "verdict"), [(True, 1, "proven"), (True, 5, "failed"), (False, 1, "failed")]
)
def test_rounding_may_send_one_token_in_a_hundred_to_another_expert(has_experts, changed, verdict):
    logits = torch.randn(200, 16, generator=torch.Generator().manual_seed(1)).numpy()
    other = logits.copy()
    other[:changed] += 0.5  # the top tokens stay the same
    ours = Answers(logits, (), (), (), None, has_experts=has_experts)
    theirs = {"logits": other, "written": [], "texts": [], "decoded": [], "chat": None, "loaded_as": "it"}
    check = compare_answers(ours, theirs, TOLERANCES[LLAMA_CPP]["f16"], 0.99)
    assert check.verdict == verdict, check.describe()
    assert ("in 99 % of positions" in check.describe()) == has_experts


def test_q8_0_stores_rows_that_are_not_a_multiple_of_32_as_f16(in_tmp_path):
    from gguf import GGUFReader

    model, tokenizer = a_model(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, intermediate_size=64)
    write_gguf(to_native(model), tokenizer, Path("m.gguf"), weights="q8_0", name="m")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader("m.gguf").tensors}
    assert (kinds["blk.0.ffn_up.weight"], kinds["blk.0.ffn_down.weight"]) == ("F16", "Q8_0")


GPT2 = {"position_embedding": "learned", "norm": "layernorm", "activation": "gelu", "attention": "mha"}
GPT2 |= {"num_key_value_heads": 4, "tie_word_embeddings": True}
DESIGNS = {
    "llama": {},
    "gpt2": GPT2,
    "gpt2 with biases": GPT2 | {"attention_bias": True, "mlp_bias": True},
    "untied, with biases": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "yarn": {"position_embedding": "yarn"},
    "qwen3": {"qk_norm": True},
    "qwen3 with yarn": {"qk_norm": True, "position_embedding": "yarn"},
    "mixtral": {"num_experts": 4},
    "qwen3-moe": {"num_experts": 4, "qk_norm": True},
}


@pytest.mark.skipif(not HAS_LLAMA_CPP, reason=NO_LLAMA_CPP)
@pytest.mark.parametrize("weights", ["f32", "f16"])
@pytest.mark.parametrize(
    "design", [pytest.param(name, marks=[] if name == "llama" else pytest.mark.slow) for name in DESIGNS]
)
def test_llama_cpp_agrees_within_005_and_on_99_percent_of_tokens(design, weights, in_tmp_path):
    Path("text.txt").write_text("the small red bird sings near the old tree.\n" * 400)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    trained = run(
        {
            "stage": "pretrain",
            "name": "taught",
            "device": "cpu",
            "model": sizes | DESIGNS[design],
            "data": [{"path": "text.txt"}],
            "train": {"max_steps": 40, "max_length": 48, "per_device_train_batch_size": 8, "dtype": "float32"}
            | {"compile": False, "eval_steps": 40, "save_steps": 40},
            "optimizer": {"name": "adamw", "learning_rate": 0.01},
        }
    )
    model, tokenizer = load(trained["path"])
    probe = make_probe(model, tokenizer)
    ours = ask(model, tokenizer, probe)
    write_gguf(to_native(model) or model, tokenizer, Path("taught.gguf"), weights=weights, name="taught")
    (answer,) = ask_others([({"loader": "llama.cpp", "folder": ".", "file": "taught.gguf"}, probe)])
    differences = np.abs(answer["logits"] - ours.logits).max(axis=-1)
    assert np.quantile(differences, 0.99 if ours.has_experts else 1) < 0.05
    assert (answer["logits"].argmax(-1) == ours.logits.argmax(-1)).mean() >= 0.99
    assert [list(tokens) for tokens in ours.written] == answer["written"]
    if weights == "f32" and "gpt2" not in design:  # GPT-2's GELU comes from a table in f16 there
        assert np.quantile(differences, 0.99 if ours.has_experts else 1) < 1e-3


def varied_texts(count: int) -> tuple[str, ...]:
    """Return texts made of pieces on which tokenizers differ: scripts, white space, digits, symbols, contractions."""
    pieces = ["the", " a", "It's", "'ll", "WE'RE", "don’t", "123", "3.14", "1,000,000", "  ", "\t", "\n\n", "\r\n"]
    pieces += [
        "...",
        "!?",
        "<b>",
        "&amp;",
        "http://a.b/c?d=e",
        "def f(x):",
        "    return",
        "$$",
        "a_b",
        "x" * 40,
        "e\u0301",
    ]
    pieces += [piece for text in TEXTS for piece in text.split()]
    pick = random.Random(5)
    ranges = ((32, 0x250), (0x370, 0x1000), (0x2000, 0x2C00), (0x3040, 0x9FFF), (0x1F300, 0x1F700))
    found = []
    for index in range(count):
        parts = [pick.choice(pieces) + pick.choice(("", " ", "\n")) for _ in range(pick.randint(1, 14))]
        parts += [chr(pick.randrange(*pick.choice(ranges))) for _ in range(20 if index % 4 == 0 else 0)]
        found.append("".join(parts))
    return tuple(found)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LLAMA_CPP, reason=NO_LLAMA_CPP)
def test_llama_cpp_splits_200_varied_texts_as_the_tokenizers_made_here_do(in_tmp_path):
    jobs, probes = {}, {}
    for name, tokenizer in {"bytes": make_byte_tokenizer(), "bpe": train_bpe(varied_texts(400), 900)}.items():
        model = load_model(save_llama(name, tokenizer))
        write_gguf(to_native(model), load_tokenizer(name), Path(f"{name}.gguf"), weights="f32", name=name)
        probes[name] = replace(make_probe(model, tokenizer), texts=varied_texts(200))
        jobs[f"{name}.gguf", LLAMA_CPP] = ask(model, load_tokenizer(name), probes[name]), probes[name]
    for key, check in checks_of(jobs).items():
        assert check.verdict == "proven", (key, check.describe())
        assert check.texts_alike == check.texts == 200


def test_a_pipeline_exports_an_adapter_with_new_tokens_and_a_chat_template_to_one_gguf_file(in_tmp_path):
    write_base()
    changes = {"lora": {"preset": "all", "r": 4}, "train.max_steps": 2, "train.eval_steps": 2, "train.save_steps": 2}
    stages = [post_recipe("sft", **changes), {"stage": "export", "export": {"to": "gguf"}}]
    assert run({"name": "life", "device": "cpu", "stages": stages})["status"] == "done"
    assert find_model("life") == Path("checkpoints/life/sft/model")
    facts = facts_of("life/export")
    assert facts["proof"]["verdict"] == "proven", facts["proof"]
    from gguf import GGUFReader

    tokenizer = load_tokenizer("checkpoints/life/sft/model")
    (file,) = Path("checkpoints/life/export/gguf").glob("*.gguf")
    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[tokenizer.eos_token_id] == "<|im_end|>"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.eot_token_id"].contents() == tokens.index("<|endoftext|>")
    assert fields["tokenizer.ggml.token_type"].contents()[tokenizer.eos_token_id] == 3  # a control token
    # Only transformers supports {% generation %}; without it, the template gives the same text.
    template = fields["tokenizer.chat_template"].contents()
    assert "generation %}" not in template
    talk = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": " Yes. "}]
    write = tokenizer.apply_chat_template
    assert write(talk, tokenize=False, chat_template=template) == write(talk, tokenize=False)
    assert facts["parent"]["path"].endswith("sft/model")


def sentencepiece(*, by_normalizer: bool):
    """Return a SentencePiece BPE with byte fallback, like Llama 2's tokenizer.json or like the current class."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=60, show_progress=False)
    trained.train_from_iterator([*(f"It's {n}, isn't it? In {n * 37} DAYS!" for n in range(300)), *TEXTS[:5]], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Tokenizer(models.BPE(model["vocab"], merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if by_normalizer:
        steps = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return with_bos(PreTrainedTokenizerFast(tokenizer_object=backend, **named))


def with_bos(tokenizer):
    """Make a tokenizer add BOS and clean up spaces, as Llama 3's does."""
    from tokenizers.processors import TemplateProcessing

    first = (tokenizer.bos_token, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    tokenizer.clean_up_tokenization_spaces = True
    return tokenizer


def save_llama(folder: str, tokenizer, extra_rows: int = 0, **changes) -> str:
    """Save a Llama model with transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer) + extra_rows, **sizes, num_key_value_heads=2, initializer_range=0.1, **changes
    )
    model = LlamaForCausalLM(config)
    set_special_tokens(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not GPT2_TOKENIZER.is_dir(), reason="GPT-2's tokenizer is not there")
def test_a_hugging_face_folder_is_exported_with_its_own_tokenizer(in_tmp_path, capsys):
    from transformers import AutoTokenizer

    folder = save_llama("theirs", AutoTokenizer.from_pretrained(GPT2_TOKENIZER))
    assert main(["export", folder, "--to", "gguf", "--out", "files"]) == 0
    assert "Exported, verified: files/theirs-f32.gguf" in capsys.readouterr().out


def test_an_architecture_that_is_not_ours_is_exported_but_not_to_gguf(in_tmp_path, capsys):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = sentencepiece(by_normalizer=True)
    config = GPTNeoXConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=64)
    GPTNeoXForCausalLM(config).save_pretrained("neox")
    tokenizer.save_pretrained("neox")
    assert main(["export", "neox", "--out", "again"]) == 0
    assert json.loads(Path("again/config.json").read_text())["model_type"] == "gpt_neox"
    assert main(["export", "neox", "--to", "gguf"]) == 2
    assert "this is gpt_neox" in capsys.readouterr().err


def edit(folder: str, change) -> None:
    """Change the weights of a folder, given as a dict of tensors."""
    file = Path(folder, "model.safetensors")
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_missing_weights_are_an_error(form, in_tmp_path, capsys):
    folder = write_base("base")
    edit(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    assert main(["export", folder, "--to", form, "--out", "out"]) == 2
    assert "are missing: model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"partial_rotary_factor": 0.5},  # a key of other models, which Llama ignores
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "attention_bias": True, "mlp_bias": True},
    ],
)
def test_config_keys_that_the_model_class_ignores_have_no_effect(keys, in_tmp_path):
    folder = write_base("base")
    file = Path(folder, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"sliding_window": None} | keys))
    save_model(load_model(folder, merge=True), "out", load_tokenizer(folder))  # as an export writes it
    ids = torch.arange(1, 101)[None]
    theirs, exported = (AutoModelForCausalLM.from_pretrained(where) for where in (folder, "out"))
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(in_tmp_path, capsys):
    write_base("base")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited[1]))
    try:
        codes = [main(["export", "base", "--to", form, "--out", "out"]) for form in ("hf", "gguf")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert codes == [3, 3]
    assert capsys.readouterr().err.count("out: the model could not be written") == 2
    assert {path.name for path in Path().iterdir()} == {"base"}


def test_nan_weights_are_an_error(in_tmp_path, capsys):
    folder = write_base("base")
    edit(folder, lambda weights: weights["model.norm.weight"].fill_(float("nan")))
    assert main(["export", folder, "--out", "out"]) == 2
    assert "NaN" in capsys.readouterr().err
    assert not Path("out").exists()


def test_parts_of_a_tokenizer_that_are_not_compared_are_reported(in_tmp_path, capsys):
    folder = write_base("base")
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.chat_template = "{{ raise_exception('only tools') }}"
    tokenizer.save_pretrained(folder)
    assert main(["export", folder, "--out", "out"]) == 0
    output = capsys.readouterr().out
    assert "the tokenizer has 259 tokens, but the model only 257 embedding rows" in output
    assert "not compared" in output
    assert main(["export", folder, "--to", "gguf", "--out", "file"]) == 2


def with_split(expression: str, *, ignore_merges: bool, normalizer=None):
    """Return a byte-level BPE with another model family's pre-tokenizer."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    text = [f"It's {n} o'clock, isn't it?\n\n  In {n * 37} DAYS we'LL see naïve café № {n}!\r\n" for n in range(300)]
    tokenizer = train_bpe(text, 600)
    split = pre_tokenizers.Split(Regex(expression), behavior="isolated")
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.model.ignore_merges = ignore_merges
    if normalizer:
        backend.normalizer = getattr(normalizers, normalizer)()
    return tokenizer


def test_tokenizers_with_known_pre_tokenizers_split_text_equally_everywhere(in_tmp_path):
    # Bytes without merges, GPT-2, Llama 3, Qwen and SentencePiece, in every program that supports them.
    tokenizers = {
        "bytes": (make_byte_tokenizer(), "gpt-2"),
        "bpe": (train_bpe(TEXTS, 600), "gpt-2"),
        "llama3": (with_bos(with_split(LLAMA3, ignore_merges=True)), "llama-bpe"),
        "qwen2": (with_split(QWEN2, ignore_merges=False, normalizer="NFC"), "qwen2"),
        "llama2": (sentencepiece(by_normalizer=True), "default"),
        "mistral": (sentencepiece(by_normalizer=False), "default"),
    }
    remarks = {"qwen2": 1, "llama2": 1, "mistral": 1}
    jobs = {}
    for name, (tokenizer, pre) in tokenizers.items():
        words = read_tokenizer(tokenizer, len(tokenizer))
        assert (words.pre, len(words.remarks)) == (pre, remarks.get(name, 0))
        model = load_model(save_llama(name, tokenizer, extra_rows=9 if name == "bytes" else 0))
        tokenizer = load_tokenizer(name)
        write_gguf(to_native(model), tokenizer, Path(f"{name}.gguf"), weights="f32", name=name)
        probe = make_probe(model, tokenizer, trimmed=LEADING_SPACE in words.remarks)
        for program in (TRANSFORMERS, *([LLAMA_CPP] if HAS_LLAMA_CPP else [])):
            jobs[f"{name}.gguf", program] = ask(model, tokenizer, probe), probe
    for key, check in checks_of(jobs).items():
        assert check.verdict == "proven", (key, check.describe())
        assert check.texts_alike == check.texts >= 12


def test_a_legacy_tokenizer_with_a_template_is_compared_only_by_readers_that_split_it_alike(in_tmp_path, capsys):
    tokenizer = sentencepiece(by_normalizer=True)
    tokenizer.chat_template = "{% for m in messages %}{{ bos_token + m['content'] + eos_token }}{% endfor %}"
    folder = save_llama("legacy", tokenizer)
    assert main(["export", folder, "--to", "gguf", "--out", "out"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "which Transformers leaves out of a GGUF file" in shown
    assert len(list(Path("out").glob("*.gguf"))) == 1
    assert LLAMA_CPP in shown


def test_a_tokenizer_that_gguf_does_not_support_is_refused_with_the_reason(in_tmp_path, capsys):
    folder = save_llama("odd", with_split(r"\d|\D+", ignore_merges=False))
    assert main(["export", folder, "--to", "gguf"]) == 2
    assert "its pre-tokenizer is not one of llama.cpp's" in capsys.readouterr().err
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = save_llama("words", PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b"))
    assert main(["export", folder, "--to", "gguf"]) == 2
    assert "WordLevel" in capsys.readouterr().err
    assert plan_export(folder).files  # a Hugging Face folder supports any tokenizer


def test_wrong_input_is_an_error_before_anything_is_written(in_tmp_path, capsys):
    write_run()
    Path("full").mkdir()
    Path("full/file").touch()
    write_reward_model("reward")
    for words, said in (
        (["reward"], "exporting reward models is not supported"),
        (["born", "--out", "full"], "the folder is not empty"),
        (["born", "--weights", "q8_0"], "can't store this type"),
        (["born", "--public"], "has no effect without export.push"),
        (["born", "--trust-remote-code"], "--out"),
        (["born", "export.size=3"], "unknown key"),
        (["bron"], "Did you mean born?"),
    ):
        assert main(["export", *words]) == 2, words
        assert said in capsys.readouterr().err, words
    assert {path.name for path in Path().iterdir()} == {"full", "reward", "checkpoints"}
    assert {path.name for path in Path("checkpoints").iterdir()} == {"born"}


def test_a_dry_run_shows_the_files_and_writes_nothing(in_tmp_path, capsys):
    write_run()
    before = sorted(Path().rglob("*"))
    for words in (["--to", "gguf"], []):
        assert main(["export", "born", *words, "--dry-run"]) == 0
        output = capsys.readouterr().out
        assert "Llama" in output
        assert ("born-f32.gguf" if words else "model.safetensors") in output
    assert sorted(Path().rglob("*")) == before


def test_custom_code_of_a_model_requires_trust_remote_code(in_tmp_path, capsys, monkeypatch):
    write_base("theirs", position_embedding="alibi", norm="layernorm", activation="gelu")
    for file in Path("theirs").glob("*.*"):
        if file.suffix in (".py", ".json"):
            file.write_text(file.read_text().replace('"llm_lab"', '"their_lab"'))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked"))
    assert main(["export", "theirs", "--out", "ours"]) == 2
    assert "contains custom code" in capsys.readouterr().err
    assert main(["export", "theirs", "--out", "ours", "--trust-remote-code"]) == 0
    assert "Exported, verified: ours" in capsys.readouterr().out
    assert "modeling_lab.py" in os.listdir("ours")
    assert json.loads(Path("ours/config.json").read_text())["model_type"] == "their_lab"


def test_a_pipeline_with_an_unsupported_gguf_export_is_refused_before_training(in_tmp_path):
    write_text("text.txt")
    first = tiny_recipe(**{"model.position_embedding": "alibi"})
    with pytest.raises(UserError, match=r"stages.1.export.to = gguf: GGUF's Llama has no alibi"):
        run({"name": "life", "device": "cpu", "stages": [first, {"stage": "export", "export": {"to": "gguf"}}]})
    assert not Path("checkpoints/life").exists()
