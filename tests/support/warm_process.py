"""A process in which torch and transformers are imported once, and LLM Lab can't be; programs run in forks of it.

A new process takes four seconds to import them. A fork is as good as new: it has its own module cache and no LLM Lab.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SERVER = """
import gc, json, os, sys, traceback

gc.disable()

class BlockLab:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llm_lab":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, BlockLab())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM
from transformers import dynamic_module_utils, modeling_gguf_pytorch_utils
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")  # makes the table of all models, which each fork would make again

def work(job):
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["env"])
    dynamic_module_utils.HF_MODULES_CACHE = job["env"]["HF_MODULES_CACHE"]
    sys.argv = ["-c", *job["arguments"]]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(os.path.join(job["folder"], name), os.O_WRONLY | os.O_CREAT), number)
    exec(compile(job["program"], "<string>", "exec"), {"__name__": "__main__"})

for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            work(json.loads(line))
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class WarmProcess:
    """Runs Python programs in forks of one process, which is started when it is first needed."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, command: Sequence[str], *, cwd: str | Path, env: dict[str, str], **_: Any
    ) -> subprocess.CompletedProcess:
        """Do what subprocess.run does for the command [python, -c, program, arguments...]."""
        python, flag, program, *arguments = command
        assert (python, flag) == (sys.executable, "-c")
        if self._server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._server = subprocess.Popen([python, "-c", SERVER], env=env, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            job = {"program": program, "arguments": arguments, "cwd": str(cwd), "env": env, "folder": folder}
            self._server.stdin.write(json.dumps(job) + "\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
            written = [Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr")]
            return subprocess.CompletedProcess(list(command), code, *written)

    def close(self) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait()


@contextlib.contextmanager
def warm_process() -> Iterator[WarmProcess]:
    process = WarmProcess()
    try:
        yield process
    finally:
        process.close()
