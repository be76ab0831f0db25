"""Send the metrics of a run to trackers (TensorBoard, Weights & Biases, trackio) during training.

transformers' callbacks can't be used: our rows carry their own step, evaluations also happen before and after
training, and a resumed run must continue its curve.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from llm_lab.errors import MachineError, Problem, first_line
from llm_lab.events import Listener, Notice, RunWarning
from llm_lab.recipe.files import read_recipe_file
from llm_lab.runs.folder import RunFolder
from llm_lab.runs.processes import is_first_process

PROJECT = "llm-lab"
FOLDER = "tracking"
PROGRESS = ("train_tokens", "wall_seconds", "tokens_per_second", "memory_bytes")
Numbers = Mapping[str, float]


class Tracker(Protocol):
    """Receives metrics."""

    def log(self, numbers: Numbers, step: int) -> None: ...

    def close(self) -> None: ...


class Tracking:
    """The trackers of a run, open inside `with` in the process that writes. Without names, nothing is imported.

    first_step: where the run resumes; metrics of later steps are sent again.
    """

    def __init__(self, names: tuple[str, ...], run: RunFolder, listener: Listener, *, first_step: int = 0):
        self._names, self._run, self._listener, self._first_step = names, run, listener, first_step
        self._open: dict[str, Tracker] = {}

    def __enter__(self) -> Tracking:
        """Open the trackers. Raises MachineError if one can't be opened."""
        for name in self._names if is_first_process() else ():
            try:
                self._open[name] = OPENERS[name](self._run, self._first_step, self._listener)
            except MachineError:
                raise
            except Exception as error:  # the tracker's code may raise anything; nothing has been trained yet
                why = f"{name} can't be opened: {first_line(error)}"
                raise MachineError(
                    Problem("train.report_to", why, fix="Fix the problem, or leave the key out.")
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            with self._guarded(name):
                self._open[name].close()
        self._open.clear()

    def log(self, row: Mapping[str, Any]) -> None:
        """Send a row of metrics.jsonl, under names that group it: train/, eval/, progress/."""
        for name in list(self._open):
            with self._guarded(name):
                self._open[name].log(grouped(row), row["step"])

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Any:
        """If a tracker fails, warn and stop sending to it; the run continues."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            self._listener(
                RunWarning(
                    f"{name}: {first_line(error)}; no more metrics are sent to it. metrics.jsonl has all of them."
                )
            )


def grouped(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a row's numbers under grouped names: train/loss, eval/loss, progress/train_tokens."""
    kind = "train" if "loss" in row else "eval"
    found = {}
    for key, value in row.items():
        if key == "step" or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        group, name = ("progress", key) if key in PROGRESS else (kind, key.removeprefix("eval_"))
        found[f"{group}/{name}"] = value
    return found


def _settings(run: RunFolder) -> dict[str, Any]:
    """Return the recipe. It contains no secrets: recipes must not contain any."""
    return read_recipe_file(run.recipe_path) if run.recipe_path.is_file() else {}


class _TensorBoard:
    """Event files in the run folder: tensorboard --logdir checkpoints."""

    def __init__(self, run: RunFolder, first_step: int, listener: Listener):
        from torch.utils.tensorboard import SummaryWriter

        folder = run.path / FOLDER / "tensorboard"
        # purge_step removes what an earlier process wrote for steps that are repeated.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)
        listener(Notice(f"tensorboard: tensorboard --logdir {run.path}"))

    def log(self, numbers: Numbers, step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases; without a login it is stored in the run folder, and wandb asks nothing."""

    def __init__(self, run: RunFolder, first_step: int, listener: Listener):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb's own telemetry
        import wandb

        with contextlib.redirect_stderr(io.StringIO()):
            mode: Any = os.environ.get("WANDB_MODE") or (
                "online" if wandb.login(prompt=False, verify=False) else "offline"
            )
        folder = run.path / FOLDER
        folder.mkdir(exist_ok=True)
        known = (run.facts().get("tracking") or {}).get("wandb")
        number = known if known and first_step else os.urandom(4).hex()
        # Code, git state and terminal output are not sent.
        settings = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, disable_code=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.path.name,
            id=number,
            resume="allow",
            dir=str(folder),
            config=_settings(run),
            mode=mode,
            settings=settings,
        )
        _remember(run, wandb=number)
        hint = f"sync it with: wandb sync {folder}/wandb/offline-run-*" if mode == "offline" else mode
        listener(Notice(f"wandb: {hint}"))

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """A run of trackio, stored in TRACKIO_DIR."""

    def __init__(self, run: RunFolder, first_step: int, listener: Listener):
        import trackio

        known = (run.facts().get("tracking") or {}).get("trackio")
        # Otherwise, runs with the same name in different folders would share one curve.
        name = known if known and first_step else f"{run.path.name}-{os.urandom(3).hex()}"
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(
                project=PROJECT,
                name=name,
                config=_settings(run),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        _remember(run, trackio=name)
        listener(Notice(f"trackio: run {name}; trackio show --project {PROJECT}"))

    def log(self, numbers: Numbers, step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()  # the run's own finish() would be called again at exit, with a message


def _remember(run: RunFolder, **names: str) -> None:
    """Store the names of tracker runs in run.json, so that a resumed run continues them."""
    run.update(tracking={**(run.facts().get("tracking") or {}), **names})


OPENERS: dict[str, Callable[[RunFolder, int, Listener], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
