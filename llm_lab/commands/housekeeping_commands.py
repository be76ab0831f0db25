"""The commands for the user's runs and recipes: list, rm, mv, gc."""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_lab.errors import DONE, Problem, UserError
from llm_lab.estimate.formatting import size
from llm_lab.terminal.console import is_terminal, print_sentence, print_text

from .documents import Document, list_document


def list_things(arguments: argparse.Namespace) -> int | Document:
    """List recipes, data, models, parts and runs."""
    if arguments.what == "runs":
        return list_runs(arguments)
    given = [option for option in ("text", "stage", "status") if getattr(arguments, option) is not None]
    if given or arguments.all:
        what = f"llm-lab list {arguments.what or ''}".strip()
        raise UserError(Problem(what, "only runs can be filtered", fix="For example: llm-lab list runs --stage sft."))
    from llm_lab.job import list_recipes
    from llm_lab.terminal.listing import print_listing

    if arguments.json:
        from llm_lab.runs.entries import list_entries

        return list_document(arguments.what, list_recipes(), list_entries())
    print_listing(arguments.what, list_recipes())
    return DONE


def list_runs(arguments: argparse.Namespace) -> int | Document:
    """List the runs, with a filter and in an order."""
    from llm_lab.runs.entries import list_entries
    from llm_lab.runs.housekeeping import select
    from llm_lab.terminal.run_list import print_runs

    wanted = {"stage": arguments.stage, "status": arguments.status, "text": arguments.text}
    is_filtered = any(value is not None for value in wanted.values())
    entries = list_entries(inner=arguments.all or is_filtered)
    chosen = select(entries, **wanted, sort=arguments.sort)
    if arguments.json:
        return list_document("runs", (), chosen)
    print_runs(chosen, is_filtered=is_filtered)
    return DONE


def remove_runs(arguments: argparse.Namespace) -> int:
    """Delete runs, after a yes."""
    from llm_lab.runs.housekeeping import plan_removal, remove
    from llm_lab.terminal.run_list import print_removals

    removals = {removal.path: removal for removal in map(plan_removal, arguments.runs)}
    for name in arguments.runs if arguments.yes else ():
        if not any(Path(name) in (path, Path(path.name), path.relative_to("checkpoints")) for path in removals):
            raise UserError(Problem(name, "with --yes, runs are named in full", fix="Or leave out --yes to be asked."))
    inner = [path for path in removals if any(other in path.parents for other in removals)]
    chosen = [removal for path, removal in removals.items() if path not in inner]
    print_removals(chosen)
    if arguments.dry_run:
        return _say_dry_run()
    if not _agrees(f"Delete {size(sum(one.bytes for one in chosen))}?", arguments.yes):
        return DONE
    for removal in chosen:
        remove(removal)
        print_text(f"Deleted {removal.path}/")
    return DONE


def rename(arguments: argparse.Namespace) -> int:
    """Give a run another name."""
    from llm_lab.runs.housekeeping import rename_run

    done = rename_run(arguments.run, arguments.name)
    print_text(f"{done.old}/ is now {done.new}/")
    if done.files:
        print_text("Its name was changed in: " + ", ".join(map(str, done.files)))
    return DONE


def collect_garbage(arguments: argparse.Namespace) -> int | Document:
    """Delete what is no longer needed, after a yes."""
    from llm_lab.runs.housekeeping import delete_leftovers, find_leftovers
    from llm_lab.terminal.run_list import print_leftovers

    if arguments.keep is not None and arguments.keep < 1:
        raise UserError(Problem("--keep", "at least one checkpoint of each run is kept", arguments.keep))
    found = find_leftovers(arguments.runs, keep=arguments.keep)
    if arguments.json:
        if not arguments.dry_run and found:
            _agrees("", arguments.yes)
            delete_leftovers(found)
        return Document({"bytes": sum(one.bytes for one in found), "deleted": not arguments.dry_run, "found": found})
    print_leftovers(found)
    if arguments.keep is None:
        least = find_leftovers(arguments.runs, keep=1)
        more = sum(one.bytes for one in least) - sum(one.bytes for one in found)
        if more > 0:
            print_sentence(f"--keep 1 keeps only the last checkpoint of each run, and frees {size(more)} more.")
    if not found:
        return DONE
    if arguments.dry_run:
        return _say_dry_run()
    if _agrees(f"Delete {size(sum(one.bytes for one in found))}?", arguments.yes):
        print_text(f"Freed {size(delete_leftovers(found))}.")
    return DONE


def _say_dry_run() -> int:
    print_text("Nothing was deleted: this is a dry run.")
    return DONE


def _agrees(question: str, yes: bool) -> bool:
    """Return whether the user agrees. UserError if the user can't be asked."""
    if yes:
        return True
    if not is_terminal():
        raise UserError(
            Problem("--yes", "without a terminal, you can't be asked to confirm", fix="Add --yes to delete.")
        )
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print_text("Nothing was deleted.")
    return False
