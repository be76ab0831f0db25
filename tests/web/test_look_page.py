"""Look inside a model in the page: its numbers are those of the measurement, by mouse and by keyboard."""

import json
import re
import shutil

import pytest
import torch
from support.adapters import save_base
from support.web_runs import write_run

from llm_lab.hf.save import save_model
from llm_lab.hf.tokenizers import make_byte_tokenizer
from llm_lab.looking.heads import Repeats, ablate_heads, repeats_for, text_loss
from llm_lab.looking.inside import ABLATION_ROWS, encode
from llm_lab.looking.recording import record
from llm_lab.runner import load

HOSTILE = "<img src=x onerror=alert(1)>"
AS_TOKEN = HOSTILE.replace(" ", "·")
LONG = "the fish sings and the bird sings, " * 5
TEXT = f"the fish sings, {HOSTILE} the fish"


@pytest.fixture(scope="module")
def run(server):
    """A run with two checkpoints, whose tokenizer has a token that would be dangerous as HTML."""
    folder = server.home / "checkpoints" / "tiny"
    model = save_base(folder / "base")
    tokenizer = make_byte_tokenizer()
    tokenizer.add_tokens([HOSTILE])
    model.resize_token_embeddings(len(tokenizer))
    for place, seed in (("steps/checkpoint-10", 4), ("model", 5)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.02)
        (folder / place).mkdir(parents=True)
        save_model(model, folder / place, tokenizer)
    (folder / "steps/checkpoint-10/trainer_state.json").write_text("{}")
    facts = {"name": "tiny", "stage": "pretrain", "status": "done", "created_at": 1.0, "results": {"step": 20}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "samples.md").write_text(f"## Step 20\n\nPrompt: `{LONG.strip()}`\n\n> and so on\n")
    return folder


@pytest.fixture(scope="module")
def measured(run):
    """(model, tokenizer, ids) of the final model, loaded here."""
    model, tokenizer = load(str(run / "model"), device="cpu")
    return model, tokenizer, encode(model, tokenizer, TEXT)[0]


@pytest.fixture
def looked(server, run, page):
    """The page after the final model was measured."""
    from playwright.sync_api import expect

    page.goto(server.link)
    page.goto(f"{server.address}/look?model=tiny")
    page.get_by_label("Text", exact=True).fill(TEXT)
    page.get_by_role("button", name="Look", exact=True).click()
    # The page begins with the built-in text, which has more tokens.
    words = page.locator("#look-heads .look-text [role=option]")
    expect(words).to_have_count(len(make_byte_tokenizer()(TEXT)["input_ids"]) - len(HOSTILE) + 1, timeout=60_000)
    return page


def test_a_message_is_read_in_the_chat_template_of_the_model_or_as_bare_text(run, server, monkeypatch, tmp_path):
    from llm_lab.web import look_calls

    monkeypatch.chdir(server.home)
    chatty = shutil.copytree(run / "model", tmp_path / "chatty")
    (chatty / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    )
    for model, chat, text in (
        (chatty, True, "<user>the fish<answer>"),
        (chatty, False, "the fish"),
        (run, True, "the fish"),
    ):
        steps = look_calls.measure(str(model), "the fish", chat=chat)
        assert [list(step) for step in steps] == [["doing"], ["doing"]]
        kept = look_calls._answers[str(model), f"{chat} the fish", ""]
        assert json.loads(kept)["text"] == text


def test_the_page_begins_with_the_newest_finished_model(monkeypatch, tmp_path):
    from llm_lab.web.chat_models import newest_model

    monkeypatch.chdir(tmp_path)
    assert newest_model() is None
    for created, (name, status) in enumerate((("old", "done"), ("good", "done"), ("half", "stopped"))):
        folder = write_run(tmp_path, name, status=status, created_at=float(created))
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    assert newest_model() == "good"


def shown(value):
    """Return a share in the page's format."""
    return f"{100 * value:.{1 if value < 0.1 else 0}f}\u202f%"


def words_of(weights, tokens, row):
    """Return the page's text for a row: the five strongest weights."""
    best = weights[row, : row + 1].sort(descending=True, stable=True)
    found = [(int(at), float(value)) for value, at in zip(*best, strict=True) if value > 0][:5]
    parts = ", ".join(f"“{tokens[at]}” ({at}) {shown(value)}" for at, value in found)
    return f"“{tokens[row]}” ({row}) attends to: {parts}"


def test_the_row_under_the_mouse_has_the_measured_values_and_hostile_tokens_are_text(looked, measured):
    from playwright.sync_api import expect

    model, tokenizer, ids = measured
    attention = record(model, ids).attention
    tokens = [one.replace(" ", "·") for one in tokenizer.batch_decode([[token] for token in ids])]
    title = looked.locator("#look-heads .look-title").inner_text()
    layer, head = map(int, re.findall(r"\d+", title))
    words = looked.locator("#look-heads .look-text [role=option]")
    assert words.all_inner_texts() == tokens
    words.nth(9).hover()
    expect(looked.locator("#look-heads .look-row")).to_have_text(words_of(attention[layer][head], tokens, 9))
    looked.get_by_role("button", name="Layer 0, head 3").click()
    canvas = looked.locator("#look-heads canvas.look-large")
    box = canvas.bounding_box()
    canvas.hover(position={"x": box["width"] / 2, "y": box["height"] - 10})
    last = len(ids) - 1
    expect(looked.locator("#look-heads .look-row")).to_have_text(words_of(attention[0][3], tokens, last))
    canvas.press("ArrowUp")
    expect(looked.locator("#look-heads .look-row")).to_have_text(words_of(attention[0][3], tokens, last - 1))
    expect(looked.get_by_role("option", name=AS_TOKEN).first).to_be_visible()
    looked.get_by_role("tab", name="Logit lens").click()
    expect(looked.locator("#look-lens").get_by_role("columnheader", name=AS_TOKEN)).to_be_visible()
    expect(looked.locator("#command")).to_contain_text(f"--prompt 'the fish sings, {HOSTILE} the fish'")
    assert looked.locator("img").count() == 0


def test_the_slider_shows_another_checkpoint_of_the_run_and_is_moved_by_keyboard(looked, run):
    from playwright.sync_api import expect

    facts = looked.locator("#facts")
    slider = looked.get_by_role("slider", name="Checkpoint")
    expect(slider).to_have_attribute("aria-valuetext", "step 20")
    for key, place in (("ArrowLeft", "steps/checkpoint-10"), ("ArrowRight", "model")):
        model, tokenizer = load(str(run / place), device="cpu")
        slider.press(key)
        loss = text_loss(model, encode(model, tokenizer, TEXT)[0])
        expect(facts).to_contain_text(f"{loss:.3f}", timeout=120_000)
        named = "tiny" if place == "model" else f"checkpoints/tiny/{place}"
        expect(looked.locator("#command")).to_contain_text(f"llm-lab look {named} --prompt")
    expect(slider).to_have_attribute("aria-valuetext", "step 20")


def test_a_prompt_of_the_run_is_read_with_a_click_and_a_long_picture_says_how_much_it_shows(looked):
    from playwright.sync_api import expect

    looked.get_by_role("button", name=LONG.strip()).click()
    expect(looked.get_by_label("Text", exact=True)).to_have_value(LONG.strip())
    words = looked.locator("#look-heads .look-text [role=option]")
    size = 64  # the size of the model's context
    expect(words).to_have_count(size, timeout=120_000)
    rest = looked.locator("#look-heads .look-rest")
    expect(rest).to_contain_text(f"The picture has {size} tokens and shows ")
    assert 10 < int(re.findall(r"\d+", rest.inner_text())[1]) < size
    box = looked.locator("#look-heads .look-large-box")
    box.evaluate("box => { box.style.maxHeight = '300px'; }")
    words.nth(0).click()
    words.nth(size - 1).click()
    assert box.evaluate("box => box.scrollTop") > 300  # the chosen row is in view


def test_both_models_are_on_one_line_and_the_slider_and_the_views_stay_in_reach_together(looked):
    first, second = (looked.get_by_role("combobox", name=name).bounding_box() for name in ("Model", "Compare with"))
    looked.locator("#base").evaluate("base => { base.hidden = false; base.textContent = 'It was trained from base.'; }")
    assert looked.get_by_role("combobox", name="Model").bounding_box()["y"] == first["y"] == second["y"]
    looked.mouse.move(640, 500)
    looked.mouse.wheel(0, 900)
    slider, tab = looked.locator("#steps"), looked.get_by_role("tab", name="Heads")
    looked.wait_for_function("() => scrollY > 300")
    above, below = slider.bounding_box(), tab.bounding_box()
    assert 0 <= above["y"] < 20
    assert above["y"] + above["height"] <= below["y"] < 100
    before = looked.evaluate("scrollY")
    tab.click()  # Playwright clicks only what is not covered
    assert looked.evaluate("scrollY") <= before


def test_the_whole_page_works_by_keyboard_and_a_head_is_ablated_on_demand(looked, measured):
    from playwright.sync_api import expect

    model, tokenizer, ids = measured
    looked.get_by_role("tab", name="Attention").press("ArrowRight")
    expect(looked.get_by_role("tab", name="Heads")).to_be_focused()
    induction = looked.get_by_role("img", name=re.compile("^Induction; "))
    induction.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        induction.press(key)
    expect(looked.locator("#heads-view .said").first).to_contain_text("L1H2: ")
    induction.press("Enter")
    expect(looked.locator("#look-heads .look-title")).to_have_text("Layer 1, head 2")
    expect(looked.get_by_role("button", name="Layer 1, head 2")).to_be_focused()
    looked.keyboard.press("ArrowUp")
    expect(looked.locator("#look-heads .look-title")).to_have_text("Layer 0, head 2")
    looked.get_by_role("button", name="Ablate this head").press("Enter")
    repeats = repeats_for(model, tokenizer)
    few = Repeats(repeats.ids[:ABLATION_ROWS], repeats.length, repeats.start)
    rise = ablate_heads(model, [(0, 2)], few, ids)[2][0]
    effect = looked.locator("#attention-view .effect")
    expect(effect).to_contain_text("With the output of L0H2 set to zero", timeout=120_000)
    expect(effect).to_contain_text(f"changes by {rise.repeated:+.3f} nats on repeated".replace("-", "−"))
    expect(effect).to_contain_text(f"by {rise.text:+.3f} on the text".replace("-", "−"))


def test_a_model_that_cannot_be_looked_at_gives_one_clear_message(server, run):
    def ask(**body):
        _, _, text = server.ask("POST", "/api/look/measure", body)
        lines = [json.loads(line) for line in text.splitlines()]
        return lines[-1]["problems"][0]["text"]

    assert "there is no such run or model" in ask(model="tinny")
    assert "the same model" in ask(model="tiny", against="tiny/model", prompt=TEXT)
    assert "it is a single token" in ask(model="tiny", prompt="a")
    assert "does not begin with -" in ask(model="--trust-remote-code")
    assert "at most 200,000" in ask(model="tiny", prompt="a" * 200_001)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault_in_any_view(looked, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    looked.emulate_media(color_scheme=scheme)
    for tab in looked.get_by_role("tab").all():
        if tab.is_visible():
            tab.click()
            found = [one for one in axe.run(looked).response["violations"] if one["impact"] in ("serious", "critical")]
            assert not found, (tab.inner_text(), found)


@pytest.mark.slow
def test_the_standalone_report_is_written_by_the_command(looked, run):
    from playwright.sync_api import expect

    looked.get_by_role("button", name="Write the report").click()
    expect(looked.locator("#report-log pre")).to_contain_text(
        "Pictures: checkpoints/tiny/look/look.html", timeout=120_000
    )
    assert (run / "look" / "look.html").is_file()


@pytest.mark.slow
def test_a_model_without_attention_weights_says_so_and_shows_the_rest(server, run, looked, page):
    import psutil
    import transformers
    from playwright.sync_api import expect

    tokenizer = make_byte_tokenizer()
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, state_size=4)
    folder = server.home / "mamba"
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    page.goto(server.link)
    page.goto(f"{server.address}/look?model={folder}&prompt=the fish sings")
    expect(page.locator("#attention-view")).to_contain_text("No attention weights can be read", timeout=60_000)
    children = [one for one in psutil.Process(server.process.pid).children() if one.status() != psutil.STATUS_ZOMBIE]
    workers = [one for one in children if "llm_lab.web.look_calls" in one.cmdline()]
    assert len(workers) == 1  # the worker of the other model has ended
    page.get_by_role("tab", name="Residual stream").click()
    expect(page.get_by_role("img", name=re.compile("^Norm of the residual stream"))).to_be_visible()
