"""The terminal during a run: nothing typed is shown or kept, it is restored however the run ends, and a failing
display does not end the run."""

import errno
import io
import os
import signal
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console

from llm_lab.events import CheckpointSaved, MetricsLogged, Notice, TrainingEnded, TrainingStarted
from llm_lab.terminal.console import make_console
from llm_lab.terminal.progress import PlainDisplay, SafeDisplay, TerminalDisplay

EVENTS = [
    Notice("found"),
    TrainingStarted(10, 0, {"name": "x"}),
    MetricsLogged({"step": 1, "loss": 2.0}),
    CheckpointSaved(1, "steps/checkpoint-1"),
    TrainingEnded(),
]


def show(display, events=EVENTS):
    with display:
        for event in events:
            display(event)


def test_a_closed_pipe_does_not_end_a_run():
    reader, writer = os.pipe()
    os.close(reader)
    console = make_console()
    with os.fdopen(writer, "w") as file:
        console.file = file
        show(SafeDisplay(PlainDisplay(console)))


@pytest.mark.parametrize("kind", [PlainDisplay, TerminalDisplay])
def test_a_closed_terminal_does_not_end_a_run(kind):
    class Closed(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

    display = SafeDisplay(kind(Console(file=Closed(), force_terminal=True, width=80, height=24)))
    show(display)
    assert display.display is None, "it says nothing more"


def test_after_an_error_in_drawing_plain_lines_continue(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
    monkeypatch.setattr("llm_lab.terminal.progress.draw_frame", lambda *_, **__: 1 / 0)
    display = SafeDisplay(TerminalDisplay(console))
    show(display)
    assert isinstance(display.display, PlainDisplay)
    assert "step 1 of" in console.file.getvalue()
    assert "saved step 1" in console.file.getvalue()


def test_ctrl_c_still_passes_through_a_display():
    def stop(event):
        raise KeyboardInterrupt

    display = SafeDisplay(PlainDisplay(Console(file=io.StringIO())))
    display.display.__class__ = type("Stopping", (PlainDisplay,), {"__call__": lambda self, event: stop(event)})
    with pytest.raises(KeyboardInterrupt):
        display(Notice("x"))


# A real terminal

RUN = """
import time
from llm_lab.events import MetricsLogged, TrainingStarted
from llm_lab.terminal.console import make_console
from llm_lab.terminal.progress import make_display

with make_display() as display:
    print("preparing", flush=True)
    time.sleep({preparing})
    display(TrainingStarted(10_000, 0, {{"name": "a-run"}}))
    for step in range(1, {steps}):
        display(MetricsLogged({{"step": step, "loss": 2.5}}))
        time.sleep(0.02)
print("name: " + repr(input("name? ")))
"""


def spawn(command, arguments):
    import pexpect

    environment = {**os.environ, "TERM": "xterm-256color", "PS1": "shell> "}
    options = {"dimensions": (24, 80), "encoding": "utf-8", "timeout": 60, "env": environment}
    return pexpect.spawn(command, arguments, preexec_fn=_listen_to_sighup, **options)


def _listen_to_sighup():
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # because the tests themselves may run under nohup


def modes(child):
    return termios.tcgetattr(child.child_fd)[3] & (termios.ECHO | termios.ICANON)


def wait_for_modes(child, wanted):
    ends = time.monotonic() + 120
    while modes(child) != wanted:
        assert time.monotonic() < ends, f"the terminal's modes are {modes(child)}, not {wanted}"
        time.sleep(0.02)


def test_keys_typed_during_a_run_do_not_answer_a_later_question():
    child = spawn(sys.executable, ["-c", RUN.format(preparing=1, steps=30)])
    usual = modes(child)
    child.expect("preparing")
    child.send("early\r")
    child.expect("a-run")
    child.send("late\r")
    child.expect("name[?]")
    assert "early" not in child.before
    assert "late" not in child.before
    wait_for_modes(child, usual)
    child.send("me\r")
    child.expect("name: 'me'")


CHECK = """
import time
from llm_lab.terminal.driver import Wizard
from llm_lab.wizard.questions import Choice, Question

def check(answer):
    print("checking", flush=True)
    time.sleep(0.5)

wizard = Wizard(None)
wizard.ask(Question("a", "Which text?", "text", default="x", check=check, wait="Reading ..."))
print("answer", wizard.ask(Question("b", "Start now?", choices=(Choice("yes", "Yes"), Choice("no", "No")))))
"""


def test_keys_pressed_while_an_answer_is_checked_are_ignored_and_the_next_page_says_so():
    child = spawn(sys.executable, ["-c", CHECK])
    child.expect("Which text")
    child.send("\r")
    child.expect("checking")
    child.send("\x1b[B\r")
    child.expect("Keys pressed while you waited were ignored.")
    child.expect("Start now")
    child.send("\r")
    child.expect("answer yes")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_run_that_is_ended_by_a_signal_leaves_the_terminal_as_it_was(number):
    import pexpect

    child = spawn(sys.executable, ["-c", RUN.format(preparing=30, steps=2)])
    usual = modes(child)
    child.expect("preparing")
    wait_for_modes(child, 0)
    child.kill(number)
    wait_for_modes(child, usual)
    child.expect(pexpect.EOF)
    child.close()
    assert child.signalstatus == number


def test_ctrl_z_gives_the_shell_its_terminal_and_fg_takes_it_back(tmp_path):
    (tmp_path / "run.py").write_text(RUN.format(preparing=0, steps=2000))
    shell = spawn("bash", ["--norc", "--noprofile", "-i"])
    shell.expect("shell> ")
    shell.sendline("stty -a | tr ' ' '\\n' | grep -x -e echo -e icanon; stty echo icanon")
    shell.expect("shell> ")
    shell.sendline(f"{sys.executable} {tmp_path / 'run.py'}")
    shell.expect("a-run")
    wait_for_modes(shell, 0)
    shell.send("\x1a")
    shell.expect("Stopped")
    assert "\x1b[?25h" in shell.before, "the cursor is shown"
    shell.expect("shell> ")
    shell.sendline("stty -a")
    shell.expect("shell> ")
    assert " -echo " not in shell.before.replace(";", " "), "bash sets the modes of its own prompt only"
    assert " -icanon " not in shell.before.replace(";", " ")
    shell.sendline("fg")
    shell.expect("a-run")
    wait_for_modes(shell, 0)
    shell.sendintr()
    shell.expect("KeyboardInterrupt")
    shell.expect("shell> ")
    shell.sendline("stty -a")
    shell.expect("shell> ")
    assert " -icanon " not in shell.before.replace(";", " ")
    shell.sendline("exit")


WORK = """
import time
from llm_lab.terminal.keyboard import Keyboard, ignored_keys, shown_keys

with ignored_keys():
    print("preparing", flush=True)
    time.sleep(0.5)
    inner = Keyboard()
    inner.open()
    print("training", flush=True)
    time.sleep(0.5)
    inner.close()
    with shown_keys():
        print("sure: " + repr(input("sure? ")))
    print("ending", flush=True)
    time.sleep(0.5)
print("name: " + repr(input("name? ")))
"""


def test_keys_are_ignored_while_something_works_except_for_a_question_within():
    child = spawn(sys.executable, ["-c", WORK])
    usual = modes(child)
    for moment in ("preparing", "training"):
        child.expect(moment)
        child.send("early\r")
    child.expect("sure[?]")
    assert "early" not in child.before
    wait_for_modes(child, usual)
    child.send("yes\r")
    child.expect("sure: 'yes'")
    child.expect("ending")
    wait_for_modes(child, 0)
    child.send("late\r")
    child.expect("name[?]")
    assert "late" not in child.before
    wait_for_modes(child, usual)
    child.send("me\r")
    child.expect("name: 'me'")


IMPORT = """
import os, signal, sys, threading, time
from pathlib import Path
from llm_lab.terminal.keyboard import finished_imports

Path("slow_library").mkdir()
Path("slow_library/__init__.py").write_text("import time\\nimport slow_library.inner\\nend = time.sleep(0.3)\\n")
Path("slow_library/inner.py").write_text("import time\\ntime.sleep(0.7)\\n")
sys.path.insert(0, os.getcwd())

def press(times):
    for _ in range(times):
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

with finished_imports():
    threading.Thread(target=press, args=(2,)).start()
    try:
        import slow_library
        time.sleep(5)
    except KeyboardInterrupt:
        print("stopped after the import:", hasattr(sys.modules.get("slow_library"), "end"))
    time.sleep(0.5)  # the second key has no effect later
    threading.Thread(target=press, args=(1,)).start()
    try:
        time.sleep(5)
    except KeyboardInterrupt:
        print("stopped at once")
"""


def test_ctrl_c_during_an_import_waits_for_its_end_so_that_the_library_can_be_used_later(in_tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["stopped after the import: True", "stopped at once"], done.stderr
    assert done.stderr.count("Stopping when the libraries are loaded") == 1
