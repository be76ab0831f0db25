"""What is said before a run (the plan) and after it: where it is, what it reached, what one would do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_lab.recipe.resolve import Resolved
from llm_lab.runs.folder import ROOT, is_judge

from .console import clock, make_console
from .plan_panel import derived_table, plan_panel


def print_plan(resolved: Resolved, home: Path = ROOT, *, derived: bool = True) -> None:
    """Print what a run is going to do and cost, and what was derived. home: the folder its own is made in."""
    console = make_console()
    console.print(plan_panel(resolved, home))
    if derived and any(origin.kind == "derived" for origin in resolved.origins.values()):
        console.print(derived_table(resolved))
        console.print()


def print_checked(stages: Sequence[Resolved], remarks: Sequence[str], home: Path = ROOT) -> None:
    """Print that a recipe is right, with what this machine says to it."""
    from rich.text import Text

    console = make_console()
    for remark in remarks:
        console.print(Text(f"{remark}.", style="warn"))
    for resolved in stages:
        console.print(plan_panel(resolved, home))
        if resolved.values["device"] == "cuda" and resolved.machine.cuda_problem:
            text = f"The recipe is right, but can't run on this machine: {resolved.machine.cuda_problem}."
            console.print(Text(text, style="warn"))
        else:
            console.print(Text("The recipe is right.", style="good"))


def print_closing(facts: Mapping[str, Any]) -> None:
    """Print the end of a run."""
    from rich.text import Text

    console = make_console()
    path, results = facts["path"], facts.get("results", {})
    console.print()
    if facts["status"] == "stopped":
        console.print(Text(f"Stopped at step {results.get('step', 0):,}; the work is saved in {path}/", style="warn"))
        console.print(f"Go on with:  llm-lab run {path}/recipe.yaml --resume", soft_wrap=True)
        return
    if facts.get("stage") == "export":
        return _close_export(console, facts)
    if facts["status"] == "failed":
        console.print(Text(f"It failed before its end; what was made stands in {path}/", style="bad"))
        return
    reached = []
    if "eval_loss" in results:
        bits = f" ({results['bits_per_byte']:.3f} bits a byte)" if "bits_per_byte" in results else ""
        reached.append(f"validation loss {results['eval_loss']:.4f}{bits}")
    elif "reward" in results:
        reached.append(f"reward {results['reward']:.3f} in training")
    elif "loss" in results:
        reached.append(f"training loss {results['loss']:.4f}")
    if "eval_accuracy" in results:
        reached.append(f"accuracy {100 * results['eval_accuracy']:.1f} %")
    if "exact_match" in results:
        reached.append(f"exact match {100 * results['exact_match']:.1f} %")
    elif "eval_reward_sampled" in results:
        reached.append(f"held-out reward {results['eval_reward_sampled']:.3f}")
    if "train_tokens" in results:
        reached.append(f"{results['train_tokens']:,} tokens in {clock(results.get('wall_seconds', 0))}")
    console.print(Text(f"Done: {path}/", style="good"))
    if facts.get("stage") == "eval":
        from .evaluation_view import print_evaluation

        print_evaluation(facts["measured"])
        console.print(f"Its report:  {path}/report.md", soft_wrap=True)
        return
    if reached:
        console.print("Reached: " + ", ".join(reached), soft_wrap=True)
    console.print("What next:", style="title")
    if facts.get("stage") != "reward" and not is_judge(Path(path) / "model"):  # a judge can't be talked to
        console.print(f"  talk to it   llm-lab chat {path}", soft_wrap=True)
    console.print(f"  look at it   llm-lab show {path}", soft_wrap=True)
    console.print(f"  its report   {path}/report.md", soft_wrap=True)
    console.print(f"  replay it    llm-lab run {path}/recipe.yaml", soft_wrap=True)
    console.print("  the wizard   llm-lab")


def _close_export(console: Any, facts: Mapping[str, Any]) -> None:
    """Print the end of an export: whether what was written loads as the model it was made from."""
    from rich.text import Text

    path, export = facts["path"], facts["export"]
    verdict = export["proof"]["verdict"]
    if facts["status"] == "failed":
        console.print(Text("The proof failed: what loads is another model, so nothing is kept.", style="bad"))
        console.print(f"  the numbers  {path}/run.json", soft_wrap=True)
        return
    not_proven = ", and loads nowhere here that could show it" if verdict == "not tried" else ""
    console.print(Text(f"Exported, {verdict}{not_proven}: {export['path']}", style="warn" if not_proven else "good"))
    console.print("What next:", style="title")
    if export["to"] == "hf":
        console.print(f"  talk to it   llm-lab chat {path}", soft_wrap=True)
    else:
        console.print(f"  talk to it   llama-cli -m {export['path']}", soft_wrap=True)
    console.print(f"  how to load  {_card_of(export)}", soft_wrap=True)
    console.print(f"  look at it   llm-lab show {path}", soft_wrap=True)


def _card_of(export: Mapping[str, Any]) -> str:
    folder = export["path"] if export["to"] == "hf" else export["path"].rpartition("/")[0]
    return f"{folder}/README.md"
