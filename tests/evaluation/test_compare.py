"""Comparisons: the same prompts and texts, marked differences, adapters on and off, the checkpoints of a run."""

import html
import io
import json
import math
import re
import shutil
import time
import warnings
import weakref
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from rich.theme import Theme
from support.post_runs import write_rows
from torch.nn.functional import cross_entropy

from llm_lab import load
from llm_lab.chat.session import ChatSession, ChatSettings
from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.evaluation.compare import compare as compare_models
from llm_lab.hf.adapter import make_peft_model
from llm_lab.hf.load import load_model, without_adapter
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import load_tokenizer
from llm_lab.runs.comparison import Answer, Compared, Comparison, as_markdown, best_of, differences, verdict
from llm_lab.runs.describe import describe_evaluation
from llm_lab.runs.evaluations import evaluations_of
from llm_lab.terminal.compare_screen import print_answers, print_comparison
from llm_lab.terminal.console import PALETTE, PLAIN

pytest_plugins = ("support.compared_models",)

GREEDY = ChatSettings(temperature=0.0, top_p=1.0, max_new_tokens=12, seed=1)
SAMPLED = ChatSettings(temperature=1.0, top_p=1.0, max_new_tokens=12, seed=7)
TINY_60 = "checkpoints/tiny/steps/checkpoint-60"
on_cpu = partial(load, device="cpu")
compare = partial(compare_models, load=on_cpu, settings=GREEDY)


def answer_alone(folder, text, settings=GREEDY):
    """Return a checkpoint's answer without a comparison."""
    model, tokenizer = on_cpu(str(folder))
    return "".join(ChatSession(model, tokenizer, name="alone", settings=settings).reply(text))


def texts(comparison, number=0):
    return [model.answers[number].text for model in comparison.models]


def comparison_of(*answers, numbers=({},), **options):
    """Return a comparison of answers to one prompt."""
    models = tuple(
        Compared(f"model{i}", "", "chat", (Answer(text, len(text.split())),), numbers[i % len(numbers)])
        for i, text in enumerate(answers)
    )
    return Comparison(("a question",), models, "greedily", **options)


def screen(comparison, width=80, **options):
    file = io.StringIO()
    theme = Theme(PALETTE)
    print_comparison(comparison, Console(file=file, width=width, highlight=False, emoji=False, theme=theme, **options))
    return file.getvalue()


# Differences


@pytest.mark.parametrize(
    ("first", "other", "marked"),
    [
        ("the bird sings", "the bird sings", []),
        ("the old bird sings here", "the red bird sings here", ["red "]),
        ("the bird sings", "the bird sings at night", ["at night"]),
        ("the bird sings at night", "the bird at night", ["[-]"]),
        ("one two three four", "five six seven eight", ["five six seven eight"]),
        ("", "something", ["something"]),
        ("我 喜欢鸟", "我 喜欢鱼", ["鱼"]),
        ("the bird\nsings", "the bird sings", []),
    ],
)
def test_differences_are_found_word_by_word(first, other, marked):
    parts = differences(first, other)
    assert ["[-]" if part.kind == "gone" else part.text for part in parts if part.kind != "same"] == marked


def test_the_parts_of_an_answer_join_to_the_answer():
    pool = ["tree ", "bird", "\n\n", "  ", "鳥", "x" * 50, "é", "[bold]", "a b c "]
    for seed in range(200):
        torch.manual_seed(seed)
        first, other = ("".join(pool[i] for i in torch.randint(len(pool), (n,))) for n in (6, 9))
        assert "".join(part.text for part in differences(first, other)) == other


def test_endless_repetition_is_compared_in_under_a_second():
    begun = time.perf_counter()
    parts = differences("a b " * 5_000, "b a a " * 5_000)
    assert "".join(part.text for part in parts) == "b a a " * 5_000
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        ("a bird", "a bird", "same as A"),
        ("a  bird", "a bird", "same words as A, different whitespace"),
        ("a bird sings", "a fish sings", "differs from A starting at word 2"),
        ("a bird sings", "a bird", "same as A, but ends after word 2"),
        ("a bird", "", "empty, unlike A"),
    ],
)
def test_a_difference_is_described_in_words(first, other, said):
    assert verdict(Answer(first), Answer(other), "A") == said


def test_the_best_value_is_marked_except_losses_of_different_tokenizers():
    numbers = [{"loss:t": 2.0, "bits_per_byte:t": 1.5, "exact_match": 0.5}]
    numbers += [{"loss:t": 1.0, "bits_per_byte:t": 1.6, "exact_match": 0.5}]
    same, other = comparison_of("a", "b", numbers=numbers), comparison_of("a", "b", numbers=numbers, same_tokens=False)
    assert (best_of(same, "loss:t"), best_of(other, "loss:t")) == ({1}, set())
    assert best_of(other, "bits_per_byte:t") == {0}
    assert best_of(same, "exact_match") == set()


# The screen

AWKWARD = "[bold]not bold[/bold] **nor this** " + "x" * 120 + " 鳥が歌う" * 6 + " \x1b[2J end\tof it"


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_line_fits_and_text_is_never_interpreted_as_markup(count, width):
    shown = screen(comparison_of(*[AWKWARD, *["y" + AWKWARD] * (count - 1)]), width)
    assert max(cell_len(line) for line in shown.splitlines()) <= width
    assert "\x1b" not in shown
    # The text is complete, column by column, without the line breaks.
    first = re.split(r"─+(?:┼─+)*", shown)[1]
    cells = [line.split("│")[0] for line in first.splitlines()]
    assert re.sub(r"\s", "", "".join(cells)).startswith(re.sub(r"\s", "", AWKWARD.replace("\x1b", "␛")))


def test_up_to_three_models_fit_side_by_side_into_80_columns():
    for count, columns in ((2, [2]), (3, [3]), (4, [2, 2]), (5, [2, 3])):
        shown = screen(comparison_of(*["a word"] * count))
        rules = [line for line in shown.splitlines() if set(line.strip()) == {"─", "┼"}]
        assert [line.count("┼") + 1 for line in rules] == columns


def test_the_letters_are_explained_again_below_the_answers():
    shown = screen(comparison_of("word\n" * 50, "other\n" * 50, numbers=({"loss:a.txt": 2.0}, {"loss:a.txt": 1.5})))
    below = shown[shown.rindex("other") :]
    assert below.index("A  model0") < below.index("B  model1") < below.index("2.0000")


def test_equal_answers_have_no_marked_differences():
    shown = screen(comparison_of("a bird sings", "a bird sings", "a fish sings"))
    assert shown.count("same as A") == 1
    assert "{+fish+}" in shown
    assert "{+bird" not in shown


def test_differences_are_colored_in_a_terminal_and_bracketed_in_a_pipe():
    comparison = comparison_of("the old bird sings", "the red bird sings")
    colored = screen(comparison, force_terminal=True, color_system="standard", no_color=False)
    assert re.search(r"the \x1b\[1;33mred\x1b\[0m bird", colored)
    assert "{+" not in colored
    assert "the {+red+} bird sings" in screen(comparison)


@pytest.mark.parametrize(
    ("over_time", "heads"), [(False, ("A  model0", "B  model1")), (True, ("model0", "model1"))], ids=("models", "steps")
)
def test_plain_mode_shows_each_answer_below_the_name_of_its_model(capsys, monkeypatch, over_time, heads):
    monkeypatch.setenv(PLAIN, "1")
    print_answers(comparison_of("the old bird sings", "the red bird sings", over_time=over_time), 0)
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.splitlines()[:2] == [heads[0], "the old bird sings"]
    assert second.splitlines()[:2] == [heads[1], "the {+red+} bird sings"]
    assert "differs from" in second.splitlines()[-1]


def test_over_time_each_answer_is_compared_with_the_previous_one():
    shown = screen(comparison_of("a bird", "a fish", "a fish", over_time=True))
    assert "differs from model0 starting at word 2" in shown
    assert "same as model1" in shown


def test_the_markdown_contains_every_answer_unchanged():
    answers = ["<b>|a|</b> `x` **y**\n    z", "<b>|a|</b> `x` <pre>q</pre>\n\n# no heading"]
    text = as_markdown(comparison_of(*answers, numbers=[{"loss:my|text": 1.0}, {"loss:my|text": 2.0}]))
    found = re.findall(r"(?s)<pre>(.*?)</pre>", text)[1:]
    assert [html.unescape(re.sub("</?b>", "", part)) for part in found] == answers
    assert r"| loss on text, my\|text | **1.0000** | 2.0000 |" in text


# Prompts and answers


def test_each_model_answers_as_without_a_comparison_and_its_mode_is_shown(models):
    for settings in (GREEDY, SAMPLED):
        found = compare(["checkpoints/tiny", "adapter", "gpt2"], prompts=["the old tree"], settings=settings)
        assert texts(found) == [answer_alone(name, "the old tree", settings) for name in ("tiny", "adapter", "gpt2")]
    assert [model.mode for model in found.models] == ["completion", "chat", "completion"]
    shown = screen(found)
    assert shown.count("completion mode: continues the text") == 2
    assert shown.count("chat mode") == 1


def test_two_copies_of_a_model_sample_the_same_answer(models, tmp_path):
    shutil.copytree("gpt2", tmp_path / "copy")
    found = compare(["gpt2", str(tmp_path / "copy")], prompts=["the old tree"] * 2, settings=SAMPLED)
    assert texts(found, 0)[0] == texts(found, 0)[1] == texts(found, 1)[0]
    assert screen(found).count("same as A") == 2


def test_white_space_is_not_described_as_empty():
    assert verdict(Answer("one"), Answer(" \n"), "A") == "only whitespace, unlike A"
    assert verdict(Answer("one"), Answer(""), "A") == "empty, unlike A"


def test_the_default_prompts_are_the_runs_own(models):
    assert compare(["checkpoints/tiny", "gpt2"]).prompts == ("the old", "a")
    found = compare(["gpt2", "plain"])
    assert found.prompts == ("Once upon a time", "The", "It is")
    assert "LLM Lab's defaults" in found.remarks[0]


def test_a_prompt_that_exceeds_a_models_context_is_an_error_in_place_of_its_answer(models):
    found = compare(["checkpoints/tiny", "gpt2"], prompts=["tree " * 48])
    problems = [model.answers[0].problem for model in found.models]
    assert problems[0] is None
    assert "context holds 48" in problems[1]
    assert "context holds 48" in " ".join(screen(found).replace("│", " ").split())
    assert "**B** (no output)" in as_markdown(found)


def test_one_model_is_in_memory_at_a_time(models):
    alive, most = weakref.WeakSet(), []

    def watched(folder):
        most.append(len(alive))
        model, tokenizer = on_cpu(folder)
        alive.add(model)
        return model, tokenizer

    compare(["checkpoints/tiny", "gpt2", "adapter"], load=watched, adapter_off=True, prompts=["the"])
    assert most == [0, 0, 0]
    assert not alive


# Measurements


def nats_of(folder, documents):
    """Return the nats and tokens of documents by a direct forward pass, each after the opening token."""
    model, tokenizer = on_cpu(folder)
    total = count = 0
    for text in documents:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        logits = model(torch.tensor([ids])).logits[0, :-1]
        total += cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    return total, count


def test_losses_are_per_token_and_bits_per_byte_compare_different_tokenizers(models):
    documents = ["the old tree", "a red bird sings near the river", "under a stone"]
    write_rows("few.jsonl", [{"text": text} for text in documents])
    found = compare(["checkpoints/tiny", "gpt2"], prompts=["the"], data=["few.jsonl"])
    for model, name in zip(found.models, ("checkpoints/tiny", "gpt2"), strict=True):
        nats, count = nats_of(name, documents)
        assert model.numbers["loss:few.jsonl"] == pytest.approx(nats / count, rel=1e-4)
        bits = nats / math.log(2) / sum(map(len, documents))
        assert model.numbers["bits_per_byte:few.jsonl"] == pytest.approx(bits, rel=1e-4)
    assert not found.same_tokens
    assert "compare bits per byte" in found.remarks[-1]
    assert found.remarks[-2].startswith("Context length for the loss on text: ")
    assert compare([TINY_60, "tiny"], prompts=["the"], data=["few.jsonl"]).same_tokens


def test_agreement_is_the_share_of_equal_top_tokens(models):
    found = compare(["checkpoints/tiny", TINY_60], prompts=["the old", "a"])
    (one, tokenizer), (two, _) = on_cpu("checkpoints/tiny"), on_cpu(TINY_60)
    same = total = 0
    for prompt in ("the old", "a"):
        ids = tokenizer(prompt)["input_ids"]
        for _ in range(GREEDY.max_new_tokens + 1):  # the token after the last one counts too
            token = one(torch.tensor([ids])).logits[0, -1].argmax().item()
            same += token == two(torch.tensor([ids])).logits[0, -1].argmax().item()
            total += 1
            ids = [*ids, token]
            if token == tokenizer.eos_token_id:
                break
    assert found.models[1].numbers["agreement"] == pytest.approx(same / total)
    other = compare(["checkpoints/tiny", "gpt2"], prompts=["the old"])
    assert "agreement" not in other.models[1].numbers  # a different tokenizer


def test_a_prompt_set_is_scored_by_its_reference_answers(models):
    prompts = ["the tree", "a tree", "small tree", "red tree"]
    said = [answer_alone("checkpoints/tiny", prompt) for prompt in prompts]
    rows = [{"question": q, "answer": a if i else "never"} for i, (q, a) in enumerate(zip(prompts, said, strict=True))]
    write_rows("known.jsonl", rows)
    found = compare(["checkpoints/tiny", "gpt2"], prompt_set="known.jsonl")
    assert found.prompts == tuple(prompts[:3])
    assert found.models[0].numbers["exact_match"] == 0.75
    assert found.models[0].numbers["eval_reward"] == 0.75
    assert found.models[1].numbers["exact_match"] < 0.75
    assert {"exact_match_sampled", "eval_completion_length"} <= set(found.models[1].numbers)
    write_rows("unknown.jsonl", [{"question": prompt} for prompt in prompts])
    found = compare(["checkpoints/tiny", "gpt2"], prompt_set="unknown.jsonl")
    assert "exact_match" not in found.models[0].numbers
    assert any("no reference answers" in remark for remark in found.remarks)


def test_measurements_are_saved_with_each_checkpoint(models):
    compare(["checkpoints/tiny", "gpt2"], prompts=["the"], data=["other.txt"])
    for name in ("checkpoints/tiny/model", "gpt2"):
        row = evaluations_of(name)[-1]
        assert row["by"] == "compare"
        assert row["checkpoint"] == name
        assert row["results"]["bits_per_byte"] == row["measured"]["texts"][0]["bits_per_byte"] > 0
        assert row["data"][0]["path"] == "other.txt"
    run_line = describe_evaluation(evaluations_of("checkpoints/tiny")[-1])
    assert "bits" in run_line
    before = len(evaluations_of("gpt2"))
    compare(["checkpoints/tiny", "gpt2"], prompts=["the"])
    assert len(evaluations_of("gpt2")) == before


# Adapters switched off


def test_an_adapter_switched_off_equals_its_base_exactly(models):
    found = compare(["adapter", "plain"], adapter_off=True, prompts=["the old tree", "x"], data=["other.txt"])
    on, off, base = found.models
    assert [model.name for model in found.models] == ["adapter", "adapter, adapter off", "plain"]
    assert [answer.text for answer in off.answers] == [answer.text for answer in base.answers]
    assert [answer.text for answer in on.answers] != [answer.text for answer in off.answers]
    assert (on.mode, off.mode) == ("chat", "completion")
    for key in ("parameters", "loss:other.txt", "bits_per_byte:other.txt"):
        assert off.numbers[key] == base.numbers[key]
    assert on.numbers["loss:other.txt"] != off.numbers["loss:other.txt"]


@pytest.mark.parametrize("tied", [True, False])
def test_switching_off_gives_the_bases_logits_and_restores_the_adapter(tied, tmp_path):
    from support.adapters import lora, perturb, save_base, with_chat_tokens

    from llm_lab.hf.lora_layers import attach_lora
    from llm_lab.hf.save import save_model

    grown, tokenizer = with_chat_tokens(save_base(tmp_path / "base", tie_word_embeddings=tied))
    save_model(perturb(attach_lora(grown, lora(), seed=1)), tmp_path / "adapter", tokenizer)
    model, base = load_model(tmp_path / "adapter"), load_model(tmp_path / "base")
    ids = torch.arange(250, 257)[None]
    before, ends = model(ids).logits, model.generation_config.eos_token_id
    with without_adapter(model, str(tmp_path / "adapter")) as its_tokenizer:
        assert torch.equal(model(ids).logits, base(ids).logits)
        assert its_tokenizer.get_vocab() == load_tokenizer(tmp_path / "base").get_vocab()
        assert model.generation_config.eos_token_id == base.generation_config.eos_token_id == 256
        assert model.get_base_model().config.eos_token_id == 256
    assert torch.equal(model(ids).logits, before)
    assert model.generation_config.eos_token_id == ends == tokenizer.eos_token_id


def test_an_adapter_that_replaces_the_embeddings_cannot_be_switched_off(models, tmp_path):
    from peft import LoraConfig

    base = load_model("plain")
    base.resize_token_embeddings(260)
    tuned = make_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    with warnings.catch_warnings(action="ignore"):
        tuned.save_pretrained(tmp_path / "grown")  # PEFT saves the embeddings whole if the vocabulary has grown
    load_tokenizer("plain").save_pretrained(tmp_path / "grown")
    folder = str(tmp_path / "grown")
    with pytest.raises(UserError, match="Load the base itself: plain"):
        compare([folder], load=never, adapter_off=True)
    assert len(compare([folder, "plain"], prompts=["x"]).models) == 2


def test_a_diverged_model_is_reported_and_the_others_are_compared(models, tmp_path):
    broken = load_model("plain")
    with torch.no_grad():
        broken.get_output_embeddings().weight.fill_(float("nan"))
    save_model(broken, tmp_path / "nan", load_tokenizer("plain"))
    found = compare(["plain", str(tmp_path / "nan")], prompts=["x"], data=["other.txt"])
    assert "NaN" in found.models[1].answers[0].problem
    assert "bits_per_byte:other.txt" in found.models[0].numbers
    assert "bits_per_byte:other.txt" not in found.models[1].numbers


# The checkpoints of a run


def test_steps_compares_the_checkpoints_of_a_run_in_order(models):
    found = compare(["checkpoints/tiny"], steps=True, prompts=["the old"])
    assert [model.name for model in found.models] == ["step 20", "step 60", "step 80"]
    steps = Path("checkpoints/tiny/steps")
    folders = [steps / "checkpoint-20", steps / "checkpoint-60", "checkpoints/tiny/model"]
    assert texts(found) == [answer_alone(folder, "the old") for folder in folders]
    rows = [json.loads(line) for line in Path("checkpoints/tiny/metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert [model.numbers["step_loss"] for model in found.models] == [losses[20], losses[60], losses[80]]
    remarks = " ".join(found.remarks)
    assert "kept 3 of 4 checkpoints (train.save_total_limit=3)" in remarks
    assert "train.save_total_limit=4" in remarks
    shown = screen(found)
    assert shown.index("step 20") < shown.index("step 60") < shown.index("step 80")
    assert f"{losses[60]:.4f}" in shown


def test_steps_compares_the_checkpoints_of_all_stages_of_a_pipeline(models):
    found = compare(["checkpoints/life"], steps=True)
    names = [model.name for model in found.models]
    assert names == [f"first step {step}" for step in (20, 60, 80)] + [f"second step {step}" for step in (2, 4, 6)]
    assert [model.mode for model in found.models] == ["completion"] * 3 + ["chat"] * 3
    assert len(found.prompts) == 1


# Errors before any model is loaded


def never(folder):
    raise AssertionError(f"{folder} was loaded")


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (["checkpoints/tiny"], {}, "use --steps to compare all checkpoints"),
        (["adapter"], {}, "--adapter-off"),
        (["checkpoints/tiny", "plain"], {"adapter_off": True}, "none of these models is an adapter"),
        (["checkpoints/tiny", "tiny"], {}, "this model is named twice"),
        (["checkpoints/tiny", "checkpoints/reward"], {}, "a reward model can't generate text"),
        (["checkpoints/reward"], {"steps": True}, "reward model"),
        (["checkpoints/tiny", "checkpoints/tinny"], {}, "Did you mean checkpoints/tiny"),
        (["checkpoints/tiny", "plain"], {"steps": True}, "requires exactly one run"),
        (["gpt2"], {"steps": True}, "not a run of LLM Lab"),
        (["tinny"], {"steps": True}, "Did you mean tiny"),
        (["checkpoints/tiny", "plain"], {"data": ["nothing.txt"]}, "nothing.txt"),
        (["checkpoints/tiny", "plain"], {"prompt_set": "nothing.jsonl"}, "nothing.jsonl"),
    ],
)
def test_wrong_input_is_refused_before_any_model_is_loaded(models, names, options, message):
    with pytest.raises(UserError, match=message):
        compare(names, load=never, **options)


def test_damaged_files_are_reported_at_once_before_any_model_is_loaded(models, tmp_path):
    for name in ("truncated", "empty", "mismatched", "incomplete"):
        shutil.copytree("gpt2", tmp_path / name)
    weights = tmp_path / "truncated" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "empty" / "model.safetensors").unlink()
    for file in Path("checkpoints/tiny/model").glob("token*"):
        shutil.copy(file, tmp_path / "mismatched")
    (tmp_path / "incomplete" / "model.safetensors").rename(tmp_path / "incomplete" / "model-2.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "incomplete" / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copytree("adapter", tmp_path / "no-base")
    config = tmp_path / "no-base" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(models / "plain"), "/gone/base"))
    names = ("truncated", "empty", "mismatched", "incomplete", "no-base")
    with pytest.raises(UserError) as caught:
        compare(["gpt2", *(str(tmp_path / name) for name in names)], load=never)
    message = str(caught.value)
    for word in ("is damaged", "no weights", "another model", "model-1.safetensors", "does not exist: /gone/base"):
        assert word in message, word


# The command


def test_the_command_compares_a_hugging_face_folder_and_writes_the_result(models, capsys, tmp_path):
    words = ["compare", "gpt2", "checkpoints/tiny", "--prompt", "the old tree", "--prompt", "a bird"]
    words += ["--data", "other.txt", "--device", "cpu", "--max-new-tokens", "6"]
    assert main([*words, "--out", str(tmp_path / "c.md")]) == 0
    out = capsys.readouterr().out
    assert answer_alone("gpt2", "a bird", ChatSettings(temperature=0.0, max_new_tokens=6)) in out
    assert "bits per byte, other.txt" in " ".join(out.split())
    assert "# Comparison" in (tmp_path / "c.md").read_text()
    assert main([*words, "--out", str(tmp_path / "c.json"), "--temperature", "1", "--seed", "3"]) == 0
    written = json.loads((tmp_path / "c.json").read_text())
    assert [model["name"] for model in written["models"]] == ["gpt2", "checkpoints/tiny"]
    assert "seed 3 for all" in written["drawn"]
    assert main([*words, "--out", str(tmp_path / "c.json")]) == 0  # only comparison files are overwritten
    (tmp_path / "c.md").write_text("my notes")
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "c.md")]) == 2
    assert "not overwritten" in capsys.readouterr().err
    assert (tmp_path / "c.md").read_text() == "my notes"


def test_the_command_exits_with_code_2_on_wrong_input(models, capsys):
    assert main(["compare", "checkpoints/tiny"]) == 2
    assert "Name a second model" in capsys.readouterr().err
    assert main(["compare", "plain", "gpt2", "--out", "c.txt"]) == 2
    assert "name.md" in capsys.readouterr().err
    assert main(["compare", "plain", "gpt2", "--temperature", "-1"]) == 2
    assert "temperature" in capsys.readouterr().err


def test_the_command_compares_the_steps_of_a_run_and_an_adapter_switched_off(models, capsys):
    assert main(["compare", "tiny", "--steps", "--device", "cpu", "--prompt", "the"]) == 0
    shown = capsys.readouterr().out
    assert "3 checkpoints, first to last" in shown
    assert "{+new+}; [-]: words of the previous one missing here." in " ".join(shown.split())
    assert main(["compare", "adapter", "--adapter-off", "--device", "cpu", "--max-new-tokens", "4"]) == 0
    assert "adapter, adapter off" in capsys.readouterr().out
