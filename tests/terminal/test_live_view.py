"""What a run shows while it works: plain lines, the live frame with its help, and the curve."""

import io
import os
import re
import subprocess
import sys
import termios

import pytest
from rich.console import Console
from support.screens import assert_matches_snapshot

from llm_lab.events import (
    CheckpointSaved,
    Evaluating,
    MetricsLogged,
    Notice,
    Progress,
    RunWarning,
    SampleWritten,
    TrainingEnded,
    TrainingStarted,
)
from llm_lab.runs.glossary import QUANTITIES
from llm_lab.terminal.console import PALETTE
from llm_lab.terminal.frame import View, draw_curve, draw_curves, draw_frame, press
from llm_lab.terminal.progress import PlainDisplay, TerminalDisplay, make_display
from llm_lab.terminal.track import Track, numbers_of

HOSTILE = "a\x1b[2Jb\x07c\rd\x9b31me\u202ef\x00"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def fake_console(*, terminal, columns=80, lines=24):
    from rich.theme import Theme

    return Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=columns,
        height=lines,
        theme=Theme(PALETTE),
        highlight=False,
    )


def metrics_row(step, **more):
    return {"step": step, "train_tokens": step * 2048, "wall_seconds": step * 0.05, "loss": 2.103, **more}


def full_row(step):
    return metrics_row(step, learning_rate=0.02, grad_norm=0.41, tokens_per_second=31204.4)


def busy_track(rows=60):
    track = Track(now=Clock())
    facts = {"name": "a-run", "model": "rope · gqa", "device": "cpu", "parameters": 771_328}
    track.begin(2000, 0, {**facts, "flops_per_token": 1e9, "peak_flops": 1e14})
    for step in range(10, 10 * rows, 10):
        track.log({**full_row(step), "loss": 5 - step / 1000, "memory_bytes": 2**30, "margin": 0.5})
    track.log({"step": 10 * rows, "eval_loss": 2.2, "bits_per_byte": 3.17})
    track.write(10 * rows, "Once", "upon a time\n" * 30)
    track.progress = ("evaluating", 3, 20)
    return track


# Plain lines


def test_a_plain_log_line_holds_every_number_of_the_row():
    now = Clock()
    display = PlainDisplay(fake_console(terminal=False), now=now)
    display(TrainingStarted(max_steps=2000, first_step=0, facts={"name": "x"}))
    for step in (240, 250):
        now.seconds += 1.0
        display(MetricsLogged(full_row(step)))
    last = display.console.file.getvalue().splitlines()[-1]
    numbers = "training loss 2.1030, learning rate 0.02, gradient norm 0.41, tokens/s 31,204"
    assert last == f"step 250 of 2,000: {numbers}, 0:13 elapsed, 2:55 left"


def test_a_plain_evaluation_line_is_marked_as_one():
    display = PlainDisplay(fake_console(terminal=False))
    display(TrainingStarted(max_steps=2000, first_step=0, facts={}))
    display(
        MetricsLogged({"step": 250, "train_tokens": 9, "wall_seconds": 3.0, "eval_loss": 2.2, "bits_per_byte": 3.174})
    )
    last = display.console.file.getvalue().splitlines()[-1]
    assert last == "step 250 of 2,000, evaluation: validation loss 2.2000, bits per byte 3.1740"


def test_plain_lines_have_no_control_characters_whatever_the_model_writes():
    display = PlainDisplay(fake_console(terminal=False))
    with display:
        display(Notice(f"[red]found[/red] {HOSTILE}"))
        display(TrainingStarted(max_steps=5, first_step=2, facts={"name": HOSTILE}))
        display(SampleWritten(3, HOSTILE, HOSTILE))
        display(CheckpointSaved(3, "checkpoints/x"))
    text = display.console.file.getvalue()
    assert not CONTROL.search(text)
    assert "[red]found[/red]" in text


def test_plain_progress_prints_the_start_the_end_and_little_between():
    now = Clock()
    display = PlainDisplay(fake_console(terminal=False), now=now)
    for done in range(101):
        now.seconds += 0.11
        display(Progress("tokenizing", done, 100))
    lines = display.console.file.getvalue().splitlines()
    assert lines[0] == "tokenizing 0 % (0/100)"
    assert lines[-1] == "tokenizing 100 % (100/100)"
    assert len(lines) == 4


def test_long_plain_lines_are_not_folded():
    display = PlainDisplay(fake_console(terminal=False))
    display(Notice("word " * 60))
    assert len(display.console.file.getvalue().splitlines()) == 1


def test_a_terminal_without_redrawing_gets_lines_folded_between_words():
    display = PlainDisplay(fake_console(terminal=True, columns=60))
    display(Notice("twelve chars " * 10))
    lines = display.console.file.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.split()[-1] in ("twelve", "chars") for line in lines)


def test_the_display_is_plain_without_a_terminal(monkeypatch):
    assert isinstance(make_display(fake_console(terminal=False)).display, PlainDisplay)
    assert isinstance(
        make_display(fake_console(terminal=True)).display, PlainDisplay
    )  # forced color does not imply a terminal
    screen = fake_console(terminal=True)
    screen.file.isatty = lambda: True
    assert isinstance(make_display(screen).display, TerminalDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(screen).display, PlainDisplay)


# The live frame


@pytest.mark.parametrize("columns", [12, 40, 80, 100, 200])
@pytest.mark.parametrize("lines", [4, 8, 16, 24, 30, 60])
@pytest.mark.parametrize("unicode", [True, False])
def test_the_frame_fits_every_terminal(columns, lines, unicode):
    track = busy_track()
    track.warning = "The training loss no longer falls (step 590): " + "words " * 40
    for curve in range(len(track.panels())):
        track.curve = curve
        frame = draw_frame(track, columns, lines, unicode=unicode, keys=True)
        assert len(frame.renderables) <= lines - 2
        assert all(part.cell_len < columns for part in frame.renderables)


@pytest.mark.parametrize("unicode", [True, False])
@pytest.mark.parametrize("colors", [True, False])
def test_the_held_out_curve_has_a_mark_of_its_own_from_its_first_point_on(unicode, colors):
    track = busy_track()
    for step in (610, 620):
        track.log({"step": step, "eval_loss": 2.1})
        lines = [part.plain for part in draw_frame(track, 80, 24, unicode=unicode, colors=colors).renderables]
        legend = next(number for number, line in enumerate(lines) if "validation loss (o)" in line)
        assert any("o" in line for line in lines[legend + 1 : legend + 8])


@pytest.mark.parametrize(
    ("text", "shown"), [("", "(empty: the model ended"), (" \n\n", "(only spaces and line breaks)")]
)
def test_a_sample_without_text_says_so(text, shown):
    track = busy_track()
    track.write(700, "", text)
    assert any(shown in part.plain for part in draw_frame(track, 80, 24).renderables)
    display = PlainDisplay(console := fake_console(terminal=False))
    display(SampleWritten(700, "", text))
    assert shown in console.file.getvalue()


def test_the_frame_shows_all_numbers_the_curve_and_the_sample_at_80_by_24():
    text = "\n".join(part.plain for part in draw_frame(busy_track(), 80, 24).renderables)
    for wanted in (
        "a-run · rope · gqa · 771 k parameters · cpu",
        "step 600/2,000",
        "validation loss 2.2000",
        "bits per byte 3.1700",
        "learning rate 0.02",
        "gradient norm 0.41",
        "tokens/s 31,204",
        "MFU 31.2 %",
        "peak memory 1.0 GiB",
        "margin 0.500",
        "┤",
        "sample at step 600, prompt 'Once'",
        "upon a time",
        "evaluating",
    ):
        assert wanted in text, wanted


def rewarded_track():
    track = Track(now=Clock())
    track.begin(200, 0, {"name": "a-run", "model": "checkpoints/base", "parameters": 37_000, "device": "cpu"})
    row = {"loss": -0.003, "learning_rate": 1e-6, "grad_norm": 1.34, "tokens_per_second": 12_184.6, "entropy": 5.593}
    row |= {"reward_std": 0.3257, "kl": 0.0123, "clip_fraction": 0.012, "zero_spread_share": 0.25}
    row |= {"completion_length": 15.6, "cut_off_share": 1.0, "reward/exact_number": 0.125, "reward/length": 0.5475}
    for step in range(1, 60):
        track.log({"step": step, "reward": step / 100, **row})
    held_out = {"exact_match": 0.22, "exact_match_sampled": 0.1, "eval_reward": 0.455, "eval_reward_sampled": 0.3}
    track.log({"step": 59, **held_out})
    track.write(50, "Lily has 8 coins.", "So 8 + 1 = 9.")
    track.saved_step = 50
    return track


def test_the_frame_of_a_stage_with_rewards_shows_what_matters_at_80_by_24():
    frame = draw_frame(rewarded_track(), 80, 24)
    text = "\n".join(part.plain for part in frame.renderables)
    for wanted in (
        *("reward 0.590", "reward std 0.326", "groups without signal 25.0 %", "KL 0.0123", "clip fraction 1.2 %"),
        *("entropy 5.593", "output length 15.6", "truncated outputs 100.0 %", "exact match (greedy) 22.0 %"),
        *("exact match (sampled) 10.0 %", "held-out reward (greedy) 0.455", "training loss -0.0030"),
        *("reward  held-out reward (sampled) (o)", "So 8 + 1 = 9."),
    ):
        assert wanted in text, wanted
    assert len(frame.renderables) <= 22
    assert max(part.cell_len for part in frame.renderables) < 80


def test_the_frame_is_alive_before_the_first_row():
    track = Track(now=Clock())
    track.begin(100, 0, {"name": "x"})
    track.now.seconds = 5
    assert "0:05 elapsed, first step" in draw_frame(track, 80, 24).renderables[1].plain


def test_a_loss_that_is_nan_is_shown_without_breaking_the_screen():
    track = busy_track()
    track.log(metrics_row(700) | {"loss": float("nan")})
    frame = draw_frame(track, 80, 24)
    assert any("training loss nan" in part.plain for part in frame.renderables)


def test_the_time_left_ignores_the_first_steps_which_compile():
    track = Track(now=Clock())
    track.begin(100, 0, {})
    assert track.seconds_left() is None
    for seconds, step in ((60, 10), (61, 20), (62, 30)):
        track.now.seconds = seconds
        track.log({"step": step, "loss": 1.0})
    assert track.seconds_left() == pytest.approx(7.0)


def test_the_time_left_of_a_resumed_run_counts_its_own_steps_only():
    track = Track(now=Clock())
    track.begin(100, 50, {})
    for seconds, step in ((1, 51), (2, 52)):
        track.now.seconds = seconds
        track.log({"step": step, "loss": 1.0})
    assert track.seconds_left() == pytest.approx(48.0)


def test_the_time_left_of_a_stage_does_not_count_the_stage_before():
    console = fake_console(terminal=False)
    display = PlainDisplay(console, now=Clock())
    clock = display._track.now
    for _ in range(2):
        display(TrainingStarted(max_steps=100, first_step=0, facts={}))
        for step in (10, 20, 30):
            clock.seconds += 1
            display(MetricsLogged({"step": step, "loss": 1.0, "wall_seconds": float(step)}))
        display(TrainingEnded())
        clock.seconds += 500
    assert console.file.getvalue().count("0:07 left") == 2


def test_a_key_that_is_not_in_the_glossary_is_shown_by_its_name():
    pairs = dict(numbers_of({"step": 1, "loss": 1.0, "my_metric": 0.25, "reward/length": 0.125}, {}))
    assert pairs == {"training loss": "1.0000", "my metric": "0.2500", "reward: length": "0.125"}


def test_an_evaluation_is_shown_while_it_lasts_and_its_numbers_with_their_step():
    display = TerminalDisplay(fake_console(terminal=True))
    with display:
        display(TrainingStarted(3, 0, {"name": "mine"}))
        display(MetricsLogged({"step": 0, "eval_loss": 0.6931}))
        display(MetricsLogged(metrics_row(3)))
        display(Evaluating())
        text = "\n".join(shown_lines(display._track))
        assert "evaluating ." in text
        assert "evaluated at step 0" in text
        assert "left" not in text
        display(Evaluating(is_over=True))
        assert "evaluating" not in "\n".join(shown_lines(display._track))


def test_the_mix_of_the_data_is_shown_compactly():
    display = PlainDisplay(fake_console(terminal=False), now=Clock())
    display(TrainingStarted(max_steps=2000, first_step=0, facts={"name": "x"}))
    display(MetricsLogged(full_row(250) | {"mix": [0.6667, 0.3333], "epochs": [None, 1.204]}))
    assert "mix 67/33 %, epochs <1/1.20" in display.console.file.getvalue()
    many = dict(numbers_of({"mix": [0.125] * 8, "epochs": [12.5] * 8}, {}))
    assert many == {"mix": "13/13/13/.. %", "epochs": "12.50/12.50/12.50/.."}


def test_the_mix_of_the_data_fits_the_frame_at_80_by_24():
    track = busy_track()
    track.log(full_row(610) | {"mix": [0.25] * 4, "epochs": [0.52, None, 12.25, 0.1]})
    frame = draw_frame(track, 80, 24)
    text = "\n".join(part.plain for part in frame.renderables)
    assert "mix 25/25/25/25 %" in text
    assert "epochs 0.52/<1/12.25/0.10" in text
    assert max(part.cell_len for part in frame.renderables) <= 80
    assert len(frame.renderables) <= 22


def test_the_terminal_is_left_clean_after_an_exception():
    display = TerminalDisplay(fake_console(terminal=True))

    def fail():
        with display:
            display(Progress("tokenizing", 1, 10))
            display(Progress("tokenizing", 10, 10))
            display(TrainingStarted(max_steps=10, first_step=0, facts={"name": "x"}))
            display(MetricsLogged(full_row(1)))
            display(Notice(HOSTILE))
            display(SampleWritten(1, "", HOSTILE))
            raise RuntimeError("lost GPU")

    with pytest.raises(RuntimeError, match="lost GPU"):
        fail()
    display(TrainingEnded())
    text = display.console.file.getvalue()
    assert text.count(SHOW_CURSOR) == text.count(HIDE_CURSOR) > 0
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)
    assert text.endswith(("\n", SHOW_CURSOR))
    assert "\x1b[2J" not in text
    assert "\x07" not in text


def test_a_terminal_that_shrinks_is_cleared_and_drawn_again():
    console = fake_console(terminal=True)
    with TerminalDisplay(console) as display:
        display(TrainingStarted(max_steps=10, first_step=0, facts={"name": "x" * 60}))
        console.size = (30, 10)
        with display._lock:
            display._draw()
        assert "\x1b[2J" in console.file.getvalue()
        assert display._drawn[0] < 30


def test_one_display_shows_one_stage_after_another():
    display = TerminalDisplay(fake_console(terminal=True))
    for name in ("first", "second"):
        display(TrainingStarted(max_steps=10, first_step=0, facts={"name": name}))
        display(MetricsLogged(full_row(1)))
        display(TrainingEnded())
    assert "second" in display.console.file.getvalue()


# The keys


def shown_lines(track, columns=80, lines=24, view=None):
    return [part.plain for part in draw_frame(track, columns, lines, view=view, keys=True).renderables]


def pages_of(key, track, columns=80, lines=24):
    """Return the pages that a key shows, until it shows the numbers again."""
    view, pages = press(key, View(), track, columns, lines), []
    while view.key:
        pages.append(shown_lines(track, columns, lines, view))
        view = press(key, view, track, columns, lines)
    return pages


def test_the_question_mark_explains_every_quantity_on_the_screen_page_by_page():
    track = busy_track()
    pages = pages_of("?", track)
    assert all(page[1].startswith("step 600/2,000") for page in pages), "the progress stays on the screen"
    assert max(map(len, pages)) <= 22
    found = " ".join(line.strip() for page in pages for line in page)
    for key in ("loss", "eval_loss", "bits_per_byte", "learning_rate", "grad_norm", "mfu", "margin"):
        entry = QUANTITIES[key]
        assert entry.name in found
        assert entry.meaning in found
        assert entry.healthy in found


def test_the_question_mark_says_of_each_number_whether_it_looks_healthy():
    track = busy_track()
    for step in range(600, 700, 10):
        track.log({**full_row(step), "loss": 4.0, "grad_norm": 40.0 if step in (610, 650, 690) else 0.4})
    found = "\n".join(line for page in pages_of("?", track) for line in page)
    assert "training loss 4.0000: looks healthy, falling" in found
    assert "gradient norm 40.00: needs attention (!), 3 spikes" in found
    assert "gradient norm 40.00 !" in "\n".join(shown_lines(track)), "the number has a mark"


@pytest.mark.parametrize("columns", [12, 40, 80])
@pytest.mark.parametrize("lines", [4, 8, 24])
@pytest.mark.parametrize("key", "?sl")
def test_what_a_key_shows_fits_every_terminal(key, columns, lines):
    track = busy_track()
    track.lines.extend(f"step {step} of 2,000: training loss 2.0" for step in range(60))
    pages = pages_of(key, track, columns, lines)
    assert pages
    for page in pages:
        assert len(page) <= lines - 2
        assert max(map(len, page)) < columns


def test_the_footer_names_the_keys_and_leaves_out_those_that_do_not_fit():
    track = busy_track()
    assert shown_lines(track)[-1] == "Ctrl-C save and stop  ? explain  c next curve  s samples  l log"
    assert shown_lines(track, 60, 20)[-1] == "Ctrl-C stop  ? explain  c next curve  s samples  l log"
    assert shown_lines(track, 40, 20)[-1] == "Ctrl-C stop  ? explain  c next curve"


def test_the_curve_key_turns_through_all_curves():
    track = busy_track()
    seen = []
    for _ in track.panels():
        seen += [line for line in shown_lines(track) if "curve " in line and " of " in line]
        assert press("c", View(), track, 80, 24) == View()
    assert [" ".join(line.split()) for line in seen] == [
        "training loss validation loss (o) curve 1 of 4",
        "margin curve 2 of 4",
        "learning rate curve 3 of 4",
        "gradient norm curve 4 of 4",
    ]
    assert track.curve == 0


def test_the_sample_key_shows_all_samples_in_full():
    track = busy_track()
    track.write(600, "Twice", "another text")
    lines = [line for page in pages_of("s", track) for line in page]
    assert lines.count("upon a time") == track.samples[0][2].count("\n") > 22
    assert any("2 of 2, sample at step 600, prompt 'Twice'" in line for line in pages_of("s", track)[-1])


def test_escape_closes_the_view_of_a_key_and_other_keys_do_nothing():
    track = busy_track()
    view = press("?", View(), track, 80, 24)
    assert press("x", view, track, 80, 24) == view
    assert press("\x1b", view, track, 80, 24) == View()


def test_a_wide_terminal_has_the_numbers_next_to_the_curve_and_more_of_the_sample():
    lines = shown_lines(busy_track(), 120, 40)
    side_by_side = [line for line in lines if " │ " in line]
    assert len(side_by_side) == 20
    assert side_by_side[0].split("│")[0].split() == ["training", "loss", "4.4100"]
    assert any("┤" in line for line in side_by_side)
    assert sum("upon a time" in line for line in lines) > 8


@pytest.mark.parametrize(("columns", "rows"), [(40, 12), (60, 20), (80, 24), (120, 40)])
def test_an_evaluation_moves_nothing_in_the_frame(columns, rows):
    track = busy_track()
    evaluating = shown_lines(track, columns, rows)
    track.progress = None
    training = shown_lines(track, columns, rows)
    assert [old == new for old, new in zip(evaluating, training, strict=True)].count(False) == 1


@pytest.mark.parametrize(("columns", "rows"), [(60, 20), (80, 24), (120, 40)])
@pytest.mark.parametrize("kind", ["pretraining", "rewards", "help", "warning"])
def test_the_frame_matches_its_snapshot(kind, columns, rows):
    track = rewarded_track() if kind == "rewards" else busy_track()
    track.warning = "the gradient norm is 9 times its usual value: lower the learning rate" if kind == "warning" else ""
    view = View("?") if kind == "help" else View()
    shown = draw_frame(track, columns, rows, keys=True, colors=columns > 60, view=view)
    assert_matches_snapshot(f"live-{kind}-{columns}x{rows}", [part.plain for part in shown.renderables])


def test_a_resumed_run_shows_its_whole_curve():
    earlier = [{"step": step, "loss": 5 - step / 100, "wall_seconds": step / 2.0} for step in range(10, 210, 10)]
    track = Track(now=Clock())
    track.begin(400, 200, {"name": "x"}, earlier)
    lines = shown_lines(track)
    axis = next(line for line in lines if line.split() == ["10", "200"])
    assert axis
    assert lines[1].endswith("50 %  1:40 elapsed")
    assert "training loss 3.0000" in "\n".join(lines[2:4])


def test_a_resumed_run_shows_the_samples_from_before_until_there_are_new_ones():
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    with TerminalDisplay(console) as display:
        display(TrainingStarted(400, 200, {"name": "x"}, samples=[(200, "Once", "upon a time")]))
        lines = "\n".join(shown_lines(display._track))
        assert "sample at step 200, prompt 'Once'" in lines
        assert "s samples" in lines
        display(SampleWritten(220, "Once", "there was"))
        assert display._track.samples == [(220, "Once", "there was")]


@pytest.mark.parametrize(("columns", "lines"), [(60, 20), (80, 24)])
def test_the_log_shows_whole_entries_between_blank_lines(columns, lines):
    track = busy_track()
    track.lines += [f"step {step}: {'a number of the run, ' * 9}that is all" for step in range(1, 30)]
    frame = draw_frame(track, columns, lines, view=View("l"), keys=True)
    shown = [part.plain for part in frame.renderables]
    assert shown[2] == shown[-2] == ""
    assert shown[3].startswith("step ")
    assert shown[-3].endswith("that is all")


@pytest.mark.parametrize(("columns", "lines"), [(60, 20), (80, 24), (120, 40)])
@pytest.mark.parametrize("warning", ["", "the gradient norm is 9 times its usual value: lower the learning rate"])
def test_blank_lines_separate_the_parts_of_the_frame(columns, lines, warning):
    for track in (busy_track(), rewarded_track()):
        track.warning = warning
        shown = [part.plain for part in draw_frame(track, columns, lines, keys=True).renderables]
        firsts = [2, len(shown) - 2, *(at - 1 for at, line in enumerate(shown) if line.startswith(("!", "sample at")))]
        assert {shown[at] for at in firsts} == {""}, "\n".join(shown)


def test_a_warning_stays_in_the_frame_and_in_the_log():
    display = TerminalDisplay(fake_console(terminal=True))
    display(TrainingStarted(max_steps=10, first_step=0, facts={"name": "x"}))
    display(RunWarning("The training loss no longer falls (step 5): try this."))
    assert "! The training loss no longer falls (step 5): try this." in shown_lines(display._track)
    assert "warning: The training loss no longer falls (step 5): try this." in display._track.lines
    display(TrainingEnded())


LIVE_RUN = """
import time
from llm_lab.events import MetricsLogged, TrainingEnded, TrainingStarted
from llm_lab.terminal.progress import make_display

print("before", flush=True)
try:
    with make_display() as display:
        display(TrainingStarted(10_000, 0, {"name": "a-run"}))
        for step in range(1, 10_000):
            display(MetricsLogged({"step": step, "loss": 2.5, "learning_rate": 0.01, "grad_norm": 1.0}))
            time.sleep(0.01)
except KeyboardInterrupt:
    print("saved", flush=True)
input("name? ")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_keys_open_and_close_the_help_and_leave_the_terminal_as_it_was():
    import pexpect

    child = pexpect.spawn(
        sys.executable,
        ["-c", LIVE_RUN],
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=60,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    echo_mode = termios.tcgetattr(child.child_fd)[3] & (termios.ECHO | termios.ICANON)
    child.expect("learning rate")
    child.send("xyzzy\r\x1b[A\x1bOl\t")  # keys without a meaning
    child.send("?")
    child.expect("Step size of the optimizer")
    child.send("?")
    child.expect("2[.]5000")
    seen = child.before + child.after
    child.send("l")
    child.expect("training loss 2[.]5000, learning rate 0[.]01,")
    child.sendintr()
    child.expect("saved")
    seen += child.before
    assert "xyzzy" not in seen, "keys are not echoed"
    child.expect("name")
    assert termios.tcgetattr(child.child_fd)[3] & (termios.ECHO | termios.ICANON) == echo_mode
    child.sendline("typed")
    child.expect("typed")  # echo is on again
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


# The curve


def test_a_curve_has_the_requested_size_and_labels():
    lines = draw_curve([(step, 5.0 - step / 500) for step in range(0, 2000, 10)], 60, 8)
    assert len(lines) == 8
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("   5.0 ┤")
    assert lines[6].startswith("   1.0 ┤")
    assert lines[7].split() == ["0", "1,990"]


def test_a_falling_curve_falls_on_the_screen():
    lines = draw_curve([(0, 1.0), (10, 0.0)], 30, 6, ascii_only=True)
    columns = [line.index("*") for line in lines[:-1]]
    assert columns == sorted(columns)
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize(
    "points",
    [[], [(1, 2.0)], [(0, 3.0), (9, 3.0)], [(0, float("nan")), (1, float("inf"))], [(0, 1e-9), (1, -1e30)]],
    ids=["none", "one", "flat", "no numbers", "huge range"],
)
def test_a_curve_can_be_drawn_from_any_values(points):
    for width, height in ((1, 1), (20, 2), (80, 9)):
        assert len(draw_curve(points, width, height)) == max(2, height)


@pytest.mark.parametrize("values", [(4.6061, 4.6064), (0.00001, 0.00002), (1.0, 1.0), (0.0095, 0.0205), (99.99, 100.0)])
def test_the_numbers_of_the_axis_differ(values):
    lines = draw_curve(list(enumerate(values)), 40, 8)
    numbers = [found[1] for line in lines if (found := re.match(r" *([-\d.e]+) ┤", line))]
    assert len(set(numbers)) == len(numbers) == 3


@pytest.mark.parametrize("values", [[0.0], [0.0, 0.0], [0.0, 5.0], [3.0]])
def test_the_axis_of_values_that_are_not_negative_does_not_go_below_zero(values):
    lines = draw_curve(list(enumerate(values)), 40, 8)
    numbers = [float(found[1]) for line in lines if (found := re.match(r" *([-\d.e]+) ┤", line))]
    assert numbers[-1] == min(numbers) >= 0
    assert numbers[0] > 0
    below = [float(found[1]) for line in draw_curve([(1, -2.0)], 40, 8) if (found := re.match(r" *(\S+) ┤", line))]
    assert below[-1] < -2.0 < below[0] < 0


def test_the_later_curve_lies_on_top():
    lines = draw_curves([[(0, 1.0), (9, 1.0)], [(0, 1.0), (9, 1.0)]], 30, 4)
    owners = {index for line in lines for text, index in line if index is not None and text.strip()}
    assert owners == {1}


def test_a_schedule_is_drawn_from_zero():
    lines = draw_curve([(0, 0.0), *enumerate([0.5, 1.0, 0.5, 0.1])], 40, 6)
    assert lines[0].startswith("   1.0 ┤")
    assert lines[4].startswith("   0.0 ┤")


def test_the_screens_import_nothing_heavy():
    code = (
        "import sys, llm_lab.terminal.chat_screen, llm_lab.terminal.progress, llm_lab.terminal.plan_panel\n"
        "heavy = {'torch', 'transformers', 'prompt_toolkit', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
