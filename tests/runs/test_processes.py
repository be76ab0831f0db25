"""The processes of one run."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest
from support.process_runs import in_processes

from llm_lab.errors import Problem, UserError
from llm_lab.runs.processes import is_first_process, read_once, shares, start_processes, wait_for_all


def test_a_file_in_the_working_folder_is_not_imported_by_the_processes(tmp_path, monkeypatch):
    (tmp_path / "deepspeed.py").touch()
    (tmp_path / "program.py").touch()
    monkeypatch.chdir(tmp_path)
    program = "import sys, importlib.util, llm_lab.cli; sys.exit(importlib.util.find_spec('deepspeed') is not None)"
    assert start_processes([sys.executable, "-c", program], 1) == 0
    assert start_processes([sys.executable, "-m", "llm_lab.cli", "schema"], 1) == 0
    assert start_processes([sys.executable, "-m", "program"], 1) == 1


def test_the_other_processes_get_what_the_first_one_reads(in_tmp_path):
    """This includes reading errors. No process waits for more than it needs."""

    def work() -> None:
        share, stopped, read, found = read_once(), threading.Event(), [], []

        def pieces():
            for number in range(20):
                read.append(number)
                yield {"tokens": [number] * 3}
            raise UserError(Problem("data.0.path", "it is broken", value="text.txt"))

        with pytest.raises(UserError, match="it is broken"):
            found.extend(share(pieces(), stopped))
        Path(f"read-{os.environ['RANK']}.json").write_text(json.dumps([len(read), found]))
        wait_for_all()
        share = read_once()
        stopped.set()
        assert is_first_process() or list(share(iter([1, 2]), stopped)) == []
        wait_for_all()

    in_processes(work)
    first, other = (json.loads(Path(f"read-{rank}.json").read_text()) for rank in (0, 1))
    assert (first[0], other[0]) == (20, 0)
    assert first[1] == other[1] == [{"tokens": [number] * 3} for number in range(20)]


def test_work_is_shared_in_equal_numbers_and_counts_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    done = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        done.append(list(shares(7)))
    assert [len(each) for each in done] == [3, 3, 3]
    assert sorted(number for each in done for number, counts in each if counts) == list(range(7))
