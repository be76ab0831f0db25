"""What is known about commands that a server started and that have no run, while they start and after they failed."""

from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")

from starlette.exceptions import HTTPException

from llm_lab.web.lab import Lab
from llm_lab.web.launches import form_address, last_error
from llm_lab.web.runs_pages import run_page


def test_the_address_of_a_run_that_left_no_folder_explains_why(in_tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(in_tmp_path / "state"))
    lab = Lab()
    launch = lab.launches.start_once(["run", "gone.yaml"])
    assert lab.launches.start_once(["run", "gone.yaml"]) is launch  # a second click
    assert lab.launches.at_work("run") == 1
    launch.run = "gone"
    (row,) = lab.launches.without_run("", None)[1]
    assert (row["title"], row["run"], row["error"]) == ("gone", "gone", None)
    assert launch.process.wait(60) == 2
    assert lab.launches.at_work("run") == 0
    (row,) = lab.launches.without_run("", [row])[1]
    assert row["error"].startswith("gone.yaml: ")
    app = SimpleNamespace(state=SimpleNamespace(lab=lab))
    with pytest.raises(HTTPException) as raised:
        run_page(SimpleNamespace(path_params={"name": "gone"}, app=app))
    assert raised.value.detail == f"gone ended before anything was trained, and has no folder. {row['error']}"
    launch.dismissed = True
    assert lab.launches.without_run("", [row])[1] == []


@pytest.mark.parametrize(
    ("command", "address"),
    [
        (["study", "probing", "model=a b", "--overwrite"], "/experiments/probing?model=a+b"),
        (["run", "configs/mine.yaml"], "/new?recipe=mine"),
        (["duel", "a", "b", "seed=1", "--by", "time"], "/experiments/duel?recipe=a&other=b&key=seed%3D1&by=time"),
        (["run", "checkpoints/demo", "--resume"], None),
        (["study"], None),
    ],
)
def test_a_command_leads_back_to_its_form_with_its_answers(command, address):
    assert form_address(command) == address


def test_the_error_is_the_last_paragraph_without_the_hint_about_the_traceback(tmp_path):
    log = tmp_path / "log"
    log.write_text("plan\n\ndata.0: 3 rows\nmodel = x: not here. Check it.\n\n")
    assert last_error(log) == "model = x: not here. Check it."
    log.write_text("plan\nInternal error: KeyError: 'x'\nAdd --debug for the traceback.\n")
    assert last_error(log) == "Internal error: KeyError: 'x'"
