"""The processes of one run."""

import sys

from llm_lab.runs.processes import start_processes


def test_a_file_in_the_working_folder_is_not_imported_by_the_processes(tmp_path, monkeypatch):
    (tmp_path / "deepspeed.py").touch()
    (tmp_path / "program.py").touch()
    monkeypatch.chdir(tmp_path)
    program = "import sys, importlib.util, llm_lab.cli; sys.exit(importlib.util.find_spec('deepspeed') is not None)"
    assert start_processes([sys.executable, "-c", program], 1) == 0
    assert start_processes([sys.executable, "-m", "llm_lab.cli", "schema"], 1) == 0
    assert start_processes([sys.executable, "-m", "program"], 1) == 1
