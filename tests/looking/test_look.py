"""The look from a user's point of view: the report and its numbers, two models, a run over time, bad input."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.adapters import save_base

from llm_lab import look
from llm_lab.cli import main
from llm_lab.errors import UserError
from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.terminal.look_view import print_look

TEXT = "the fish sings, the fish"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base; tuned: the base with changed weights; shallow: another shape."""
    folder = tmp_path_factory.mktemp("looked-at")
    base = save_base(folder / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.02)
    save_model(base, folder / "tuned", make_byte_tokenizer())
    save_base(folder / "shallow", num_hidden_layers=1)
    return folder


@pytest.fixture(scope="module")
def looked(models):
    """A look at the base compared with the tuned model."""
    return look(str(models / "base"), TEXT, against=str(models / "tuned"), out=models / "look", device="cpu")


def test_the_report_holds_all_numbers_as_json(looked, models):
    found = json.loads((models / "look" / "look.json").read_text())
    assert [token["text"] for token in found["tokens"]] == [c.replace(" ", "·") for c in TEXT]
    assert all(check["holds"] for check in found["checks"] + found["against"]["checks"])
    assert len(found["checks"]) == 4
    assert len(found["tables"]["heads"]) == 8
    assert len(found["tables"]["logit_lens"]) == 3 * len(TEXT) * 5
    assert len(found["tables"]["ablation"]) == 8
    assert found["every_head_ablated"] is True
    assert len(found["cka"]) == len(found["against"]["cka"]) == 3
    total = sum(row["logit"] for row in found["tables"]["attribution"])
    assert total == pytest.approx(found["attribution_of"]["logit"], rel=1e-3)


def test_the_attention_in_the_json_is_the_recorded_one(looked, models):
    from base64 import b64decode

    found = json.loads((models / "look" / "look.json").read_text())["attention"]["layers"]
    size = len(TEXT)
    weights = looked.inside.recording.attention[1]
    values = torch.tensor(list(b64decode(found[1]))).view(4, size * (size + 1) // 2) / 255
    rows, columns = torch.tril_indices(size, size)
    torch.testing.assert_close(values, weights[:, rows, columns], atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_report_is_one_file_that_makes_no_requests(looked):
    page = looked.page.read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)""", page)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    for heading in ("Attention over the text", "What the heads do", "What the model loses without a head", "Checks"):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<figcaption>") >= 12


def test_the_difference_is_the_other_model_minus_the_first(looked, models):
    alone = look(str(models / "tuned"), TEXT, out=models / "look-tuned", device="cpu").inside
    difference = looked.difference
    torch.testing.assert_close(difference.induction, alone.scores.induction - looked.inside.scores.induction)
    pairs = zip(looked.inside.recording.attention, alone.recording.attention, strict=True)
    moved = torch.stack([(two - one).abs().sum(-1).mean(-1) / 2 for one, two in pairs])
    torch.testing.assert_close(difference.attention, moved)
    one, two = (found.recording.logits.double().log_softmax(-1) for found in (looked.inside, alone))
    kl = (one.exp() * (one - two)).sum(-1) / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(difference.divergence.double(), kl, atol=1e-4, rtol=1e-3)
    assert difference.divergence.max() > 0.001


def test_python_gets_the_numbers_as_tables_and_a_summary(looked):
    table = looked.table
    assert list(table.columns[:3]) == ["layer", "head", "induction"]
    assert len(table) == 8
    assert {"layers", "logit_lens", "attribution", "ablation", "against"} <= set(looked.tables)
    assert "Induction heads" in looked._repr_html_()


def test_tokens_are_never_read_as_html(models):
    hostile = "</script><img src=x onerror=alert(1)>&amp;\u2028 "
    found = look(str(models / "base"), hostile, out=models / "hostile", device="cpu")
    page = found.page.read_text(encoding="utf-8")
    assert "<img" not in page
    assert page.count("</script>") == 2  # one for the data, one for the script
    data = json.loads(re.search(r'id="look-data">(.*?)</script>', page)[1])
    assert "".join(data["tokens"][:9]) == "</script>"


def test_the_lines_of_a_summary_are_wrapped_under_their_beginning(looked, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=60)
    monkeypatch.setattr("llm_lab.terminal.look_view.make_console", lambda: console)
    print_look(looked)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines[:-1])) <= 60  # the last one is a path
    at = next(number for number, line in enumerate(lines) if line.startswith("- Logit lens"))
    assert re.match(r"  \S", lines[at + 1])


def test_the_command_prints_a_summary_and_writes_into_the_folder_of_the_run(finished_run, capsys):
    assert main(["look", "tiny", "--prompt", "the old tree", "--steps", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "all 4 pass" in shown
    for term in ("Induction heads, which", "Previous-token heads, which", "Logit lens, which"):
        assert term in shown, "a term is explained where it is used"
    assert "Over 2 checkpoints" in shown
    assert Path("checkpoints/tiny/look/look.html").is_file()
    found = json.loads(Path("checkpoints/tiny/look/look.json").read_text())
    assert [row["step"] for row in found["tables"]["steps"]] == [10, 20]
    last = found["tables"]["steps"][-1]
    assert last["loss_second_copy"] == pytest.approx(found["repeated_random_tokens"]["loss_second_copy"], rel=1e-4)
    assert main(["look", "tiny", "--prompt", "the", "--device", "cpu"]) == 0
    assert Path("checkpoints/tiny/look-2/look.html").is_file()  # the first report is kept
    assert main(["show", "tiny"]) == 0


def test_a_prompt_may_come_from_a_file(models, capsys):
    file = models / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    out = ["--out", str(models / "from-file"), "--device", "cpu"]
    assert main(["look", str(models / "base"), "--prompt-file", str(file), *out]) == 0
    assert json.loads((models / "from-file" / "look.json").read_text())["text"] == TEXT
    file.write_bytes(b"\xff\xfe\x00")
    assert main(["look", str(models / "base"), "--prompt-file", str(file)]) == 2
    assert main(["look", str(models / "base"), "--prompt-file", str(models / "none.txt")]) == 2
    assert "not UTF-8" in (shown := capsys.readouterr().err)
    assert "No such file" in shown


def test_a_text_that_is_longer_than_the_context_is_cut_with_a_remark(models):
    found = look(str(models / "base"), "word " * 40, out=models / "long", device="cpu")
    assert len(found.inside.ids) == 64
    assert found.remarks == [
        "The text has 200 tokens. Only its first 64 are used: the context of the model ends there."
    ]
    assert found.remarks[0] in found.page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "against", "why"),
    [
        ("", None, "it is empty"),
        (" \n", None, "it is empty"),
        ("a", None, "a single token"),
        (TEXT, "shallow", "it has 1 layer of 4 heads, but .* has 2 layers of 4 heads"),
        (TEXT, "base", "this is the same model"),
        (TEXT, "nowhere", "there is no such run or model"),
    ],
)
def test_a_model_that_cannot_be_looked_at_is_refused_with_the_reason(models, text, against, why):
    other = None if against is None else str(models / against)
    with pytest.raises(UserError, match=why):
        look(str(models / "base"), text, against=other, out=models / "refused", device="cpu")
    assert not (models / "refused").exists()


def test_another_tokenizer_is_refused(models, tmp_path):
    from support.compared_models import write_gpt2

    write_gpt2(tmp_path / "gpt2")
    with pytest.raises(UserError, match="its tokenizer splits the text into different tokens"):
        look(str(models / "base"), TEXT, against=str(tmp_path / "gpt2"), out=tmp_path / "refused", device="cpu")


def test_an_adapter_is_looked_at_together_with_its_base(models):
    from support.adapters import lora, perturb

    from llm_lab import load
    from llm_lab.hf.load import load_model
    from llm_lab.hf.lora_layers import attach_lora

    base = load_model(models / "base")
    save_model(perturb(attach_lora(base, lora(), seed=1)), models / "adapter", make_byte_tokenizer())
    found = look(str(models / "adapter"), TEXT, against=str(models / "base"), out=models / "look-adapter", device="cpu")
    merged = load_model(models / "adapter", merge=True)
    ids = torch.tensor([found.inside.ids])
    torch.testing.assert_close(found.inside.recording.logits, merged(ids).logits[0].detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        found.difference.other.recording.logits, load(str(models / "base"), device="cpu")[0](ids).logits[0].detach()
    )
    assert all(check.holds for check in found.inside.checks)
    assert found.difference.attention.max() > 0.001


def test_a_model_with_more_tokens_is_scored_on_the_same_random_tokens(models):
    from support.adapters import with_chat_tokens

    from llm_lab.hf.load import load_model

    grown, tokenizer = with_chat_tokens(load_model(models / "base"))
    save_model(grown, models / "grown", tokenizer)
    found = look(str(models / "base"), TEXT, against=str(models / "grown"), out=models / "look-grown", device="cpu")
    assert found.difference.other.recording.logits.shape[1] > found.inside.recording.logits.shape[1]
    assert float(found.difference.induction.abs().max()) < 1e-6
    assert float(found.difference.divergence.max()) < 1e-5


def test_a_folder_that_is_not_empty_is_not_written_to(models):
    with pytest.raises(UserError, match="already exists"):
        look(str(models / "base"), TEXT, out=models, device="cpu")


def test_a_run_without_checkpoints_has_nothing_to_follow(finished_run):
    shutil.rmtree("checkpoints/tiny/steps")
    with pytest.raises(UserError, match="only one checkpoint"):
        look("tiny", "the old tree", steps=True, device="cpu")


def test_a_model_without_attention_weights_gets_the_other_measurements_and_a_remark(tmp_path):
    from support.looked_at import model_named
    from transformers import MambaConfig, MambaForCausalLM

    assert model_named("Mamba").config.model_type == "mamba"
    tokenizer = make_byte_tokenizer()
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    found = look(str(tmp_path / "mamba"), TEXT, out=tmp_path / "look", device="cpu")
    page = found.page.read_text(encoding="utf-8")
    assert "No attention weights can be read from this architecture (mamba)" in page
    assert "logit_lens" in found.tables
    assert "heads" not in found.tables
    assert [row["part"] for row in found.tables["attribution"].to_dict("records")] == [
        "embedding",
        "layer 0",
        "layer 1",
        "biases",
    ]
