"""samples.md has every sample once, regardless of what prompts and texts contain."""

from pathlib import Path

import pytest

from llm_lab.runs.folder import RunFolder
from llm_lab.runs.samples import add_samples, last_prompts

PROMPTS = ["the", "", "# Title\n## Step 9\n", "`x`\n\n> y", '"quoted"', "a\r## Step 7", "(none)", " spaced ", "ünïcode"]


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(tmp_path)


def test_prompts_are_read_back_as_they_were(run):
    add_samples(run, 5, [(prompt, "text") for prompt in PROMPTS])
    assert list(last_prompts(run)) == PROMPTS


def test_headings_in_prompts_and_texts_begin_no_step(run):
    for step in (5, 10):
        add_samples(run, step, [(prompt, f"{prompt}## Step 3\r## Step 4\n## Step 6\n") for prompt in PROMPTS])
    assert [step for step, _ in run.samples()] == [5, 10]
    run.forget_after(5)
    assert [step for step, _ in run.samples()] == [5]
    assert run.samples_path.read_text().count("Prompt: ") == len(PROMPTS)


def test_samples_of_a_step_that_is_evaluated_again_replace_the_first_ones(run):
    add_samples(run, 0, [("a", "zero")])
    add_samples(run, 5, [("a", "before the kill")])
    add_samples(run, 5, [("a", "after it")])
    assert Path(run.samples_path).read_text() == (
        "## Step 0\n\nPrompt: `a`\n\n> zero\n\n## Step 5\n\nPrompt: `a`\n\n> after it\n\n"
    )
