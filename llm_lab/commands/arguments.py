"""Every command and its arguments, and the help that lists them."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llm_lab import __version__
from llm_lab.studies import DUEL_ABOUT, STUDY_ABOUT, SWEEP_ABOUT

from .argument_parser import PLAIN, STUDY_OPTION, Commands, Parser, parse_with

PRESETS = "learning-rate, lora-rank, optimizer, position-embedding, seeds"  # a test compares them
MODEL = "a run, a Hugging Face folder, a GGUF file, or a name on the Hub"
RECIPE = "a recipe's name or file, or a run"


def _groups() -> dict[str, tuple[Callable[[Commands], None], ...]]:
    """Return the commands, in the groups of the help; each function is named after its command."""
    return {
        "Train": (_new, _run, _sweep, _duel, _merge, _replay),
        "Recipes": (_check, _xray, _copy, _schema),
        "Models": (_chat, _show, _eval, _compare, _look, _export, _design),
        "Runs": (_list, _rm, _mv, _gc),
        "The lab": (_study, _web, _doctor, _completion),
    }


def command_groups() -> dict[str, list[str]]:
    """Return the names of the commands, in the groups of the help."""
    return {title: [add.__name__.removeprefix("_") for add in group] for title, group in _groups().items()}


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command; `command` is the path of its function. UserError if they are invalid."""
    return parse_with(_known_parser(), words)


@functools.cache
def _known_parser() -> Parser:
    return make_parser()


def make_parser() -> Parser:
    """Return a new parser of all commands, which the caller may change."""
    parser = Parser(prog="llm-lab", add_help=False, usage="llm-lab [command] [options]")
    parser.add_argument("-h", "--help", action=_ShowHelp, nargs=0, help="show this help and exit")
    parser.add_argument("--version", action="version", version=f"llm-lab {__version__}", help="show the version")
    parser.flag("--debug", "show tracebacks")
    parser.flag("--plain", PLAIN)
    parser.set_defaults(command="wizard_commands.open_wizard", json=False)
    commands = Commands(parser.add_subparsers(prog="llm-lab", metavar="command", parser_class=Parser))
    for group in _groups().values():
        for add in group:
            add(commands)
    return parser


class _ShowHelp(argparse.Action):
    """Prints the commands in groups, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> NoReturn:
        print("\n".join(_overview(parser)))  # noqa: T201
        parser.exit()


def _overview(parser: argparse.ArgumentParser) -> Iterator[str]:
    import shutil
    import textwrap

    width = max(40, shutil.get_terminal_size().columns - 1)
    about = {choice.dest: choice.help or "" for choice in parser._subparsers._group_actions[0]._choices_actions}  # type: ignore[union-attr]
    options = {"-h, --help": "show this help", "--version": "show the version", "--debug": "show tracebacks"}
    options["--plain"] = PLAIN
    yield "usage: llm-lab [command] [options]\n"
    text = "Build a language model from parts, train it, evaluate it, chat with it, export it."
    yield textwrap.fill(f"{text} Without a command, the wizard opens.", width, break_on_hyphens=False)
    rows = {title: {name: about[name] for name in names} for title, names in command_groups().items()}
    for group, lines in {**rows, "Options": options}.items():
        yield f"\n{group}"
        for name, what in lines.items():
            yield textwrap.fill(
                what, width, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14, break_on_hyphens=False
            )
    text = "`llm-lab COMMAND --help` shows the arguments of a command, with examples."
    yield "\n" + textwrap.fill(text, width, break_on_hyphens=False)


def _run(commands: Commands) -> None:
    parser = commands.add(
        "run",
        "run a recipe",
        "recipe_commands.run_recipe",
        "run stories",
        "run my.yaml train.max_steps=500 --dry-run",
    )
    _recipe_arguments(parser)
    parser.flag("--dry-run", "show the plan without running it")
    parser.flag("--resume", "resume the newest run of this name (stories-2 before stories) from its last checkpoint")
    parser.option("--resume-from", "STEP", "resume from the checkpoint of an earlier step; 0 is the start", type=int)
    parser.flag("--overwrite", "replace the run of the same name")
    _trust_recipe_argument(parser)
    parser.option("--nproc", "N", "train with N processes, one per GPU", type=int)
    _json_argument(parser)


def _new(commands: Commands) -> None:
    parser = commands.add(
        "new",
        "set up a run in the wizard, or write its recipe",
        "wizard_commands.new_recipe",
        "new pretrain",
        "new sft model.checkpoint=stories data.0.path=chats.jsonl --out chats.yaml",
        more="In a terminal it opens the wizard at the stage, with the given values. With --out it writes a recipe and "
        "asks nothing; without a terminal it prints the recipe. Keys that you don't give have their default "
        'values; "Train on my text" in the wizard chooses other values for a short first run. grpo and ppo need a '
        "reward, such as rewards.0.name=exact_number (`llm-lab list parts` lists all), or a reward model: "
        "rewards.0.model=RUN.",
    )
    parser.add_argument("stage", help="pretrain, sft, reward, dpo, grpo, ppo, merge, eval or export")
    _override_argument(parser, "data.0.path=my-text.txt")
    parser.option("--out", "FILE", "write the recipe to this new file", type=Path)


def _design(commands: Commands) -> None:
    parser = commands.add(
        "design",
        "design a model from parts in the wizard, or write its config",
        "wizard_commands.new_design",
        "design",
        "design hidden_size=128 num_hidden_layers=4 --out configs/models/small",
    )
    _override_argument(parser, "num_hidden_layers=4")
    parser.option("--out", "DIR", "write config.json to this new folder, without asking", type=Path)


def _completion(commands: Commands) -> None:
    parser = commands.add(
        "completion",
        "print a script that completes commands, options, recipes and runs in a shell",
        "machine_commands.print_completion",
        "completion bash > ~/.local/share/bash-completion/completions/llm-lab",
        "completion zsh > ~/.zfunc/_llm-lab",
        more="fish reads it from ~/.config/fish/completions/llm-lab.fish.",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell")


def _check(commands: Commands) -> None:
    parser = commands.add(
        "check",
        "validate a recipe, listing every problem",
        "recipe_commands.check_recipe",
        "check my.yaml",
        "check demo device=cpu",
    )
    _recipe_arguments(parser)
    _json_argument(parser)


def _xray(commands: Commands) -> None:
    parser = commands.add(
        "xray",
        "show a recipe's data token by token: trained or masked",
        "recipe_commands.xray_recipe",
        "xray demo",
        "xray my.yaml --examples 5",
    )
    _recipe_arguments(parser)
    parser.option("--examples", "N", "examples to show per dataset (default 2)", type=int, default=2)
    _json_argument(parser)


def _copy(commands: Commands) -> None:
    parser = commands.add(
        "copy",
        "copy a recipe to a new file, to edit it",
        "recipe_commands.copy_recipe",
        "copy stories my.yaml",
        "copy checkpoints/stories again.yaml",
    )
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("file", type=Path, help="the new file")


def _schema(commands: Commands) -> None:
    commands.add(
        "schema",
        "print the JSON Schema of recipes, for editors",
        "machine_commands.print_schema",
        "schema > recipe.schema.json",
        "schema | jq .title",
    )


def _list(commands: Commands) -> None:
    parser = commands.add(
        "list",
        "list recipes, data, models, parts or runs",
        "housekeeping_commands.list_things",
        "list runs --stage sft --sort result",
        "list recipes",
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="kind",
        choices=("recipes", "data", "models", "parts", "runs"),
        help="recipes, data, models, parts or runs; default: all",
    )
    parser.add_argument("text", nargs="?", help="only runs with this text in their name or stage")
    parser.option("--stage", "NAME", "only runs of this stage: pretrain, sft, pipeline, sweep ...")
    parser.option("--status", "NAME", "only runs that are done, running, stopped, failed ...")
    sorts = ("age", "name", "stage", "status", "size", "disk", "result")
    parser.add_argument(
        "--sort", choices=sorts, default="age", help="order of the runs (default: most recently active first)"
    )
    parser.flag("--all", "also the runs inside pipelines, sweeps and studies")
    _json_argument(parser)


def _rm(commands: Commands) -> None:
    parser = commands.add(
        "rm",
        "delete runs, after showing how large they are and what depends on them",
        "housekeeping_commands.remove_runs",
        "rm stories-2",
        "rm stories-2 old-sweep --dry-run",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="run", help="a run, a pipeline or one of its stages, a sweep, a study"
    )
    parser.flag("--dry-run", "show what would be deleted, without deleting it")
    parser.flag("--yes", "delete without asking")


def _mv(commands: Commands) -> None:
    parser = commands.add(
        "mv",
        "rename a run everywhere: also in adapters, recipes and runs made from it",
        "housekeeping_commands.rename",
        "mv stories-2 stories-long",
        "mv stories-sweep learning-rates",
    )
    parser.add_argument("run", help="a run, a pipeline, a sweep or a study")
    parser.add_argument("name", help="its new name")


def _gc(commands: Commands) -> None:
    parser = commands.add(
        "gc",
        "free disk space: old checkpoints, half-written files, caches",
        "housekeeping_commands.collect_garbage",
        "gc --dry-run",
        "gc stories --keep 1",
        more="Of each run it keeps four checkpoints (see --keep): the last two, the first, and one in the middle; and "
        "every checkpoint that another run was made from. Models are never deleted.",
    )
    parser.add_argument("runs", nargs="*", metavar="run", help="only these runs; default: all, and the caches")
    parser.option("--keep", "N", "checkpoints to keep of each run (default 4)", type=int)
    parser.flag("--dry-run", "show what would be deleted, with the size of each")
    parser.flag("--yes", "delete without asking")
    _json_argument(parser)


def _show(commands: Commands) -> None:
    parser = commands.add(
        "show",
        "show what a run or model is and how it was made",
        "model_commands.show_checkpoint",
        "show stories",
        "show checkpoints/demo/sft",
    )
    parser.add_argument(
        "path", metavar="model", help="a run, one of its checkpoints, a Hugging Face folder, or a GGUF file"
    )
    _json_argument(parser)


def _chat(commands: Commands) -> None:
    parser = commands.add(
        "chat",
        "chat with a model",
        "model_commands.chat",
        "chat stories",
        'chat demo --prompt "What is your name?" --temperature 0',
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    parser.option("--prompt", "TEXT", "reply to this prompt and exit")
    parser.option("--system", "TEXT", "the system prompt, for a model that was trained to chat")
    _sampling_arguments(parser, temperature="0.8", tokens="256; less for a base model with a small context")
    parser.option("--top-p", "X", "sample from the top tokens up to this probability (default 0.95)", type=float)
    parser.option("--top-k", "N", "sample from the N most likely tokens (default 0: off)", type=int)
    parser.option("--repetition-penalty", "X", "above 1: repeated tokens are less likely (default 1: off)", type=float)
    _model_arguments(parser)


def _merge(commands: Commands) -> None:
    parser = commands.add(
        "merge",
        "merge a LoRA adapter into its base",
        "model_commands.merge",
        "merge my-lora",
        "merge my-lora --out models/merged",
    )
    parser.add_argument("adapter", help="a run that trained an adapter, or a folder with an adapter")
    parser.option("--out", "DIR", "folder to write; default: a new run in checkpoints/", type=Path)
    parser.option("--tolerance", "X", "maximum logit difference, relative to the largest logit", type=float)


def _eval(commands: Commands) -> None:
    parser = commands.add(
        "eval",
        "evaluate a model: loss on text, scored outputs, speed, tasks",
        "model_commands.evaluate",
        "eval stories",
        "eval stories --data my-text.txt --prompts builtin:word-problems",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "eval.max_tokens=500")
    _measure_arguments(parser)
    parser.option("--tasks", "NAMES", "lm-evaluation-harness tasks or YAML files, comma-separated")
    parser.option("--limit", "N", "maximum number of documents per task", type=int)
    _model_arguments(parser)
    _trust_recipe_argument(parser)
    _json_argument(parser)


def _compare(commands: Commands) -> None:
    parser = commands.add(
        "compare",
        "compare models on the same prompts and data",
        "model_commands.compare_models",
        'compare stories gpt2 --prompt "Once upon a time"',
        "compare stories --steps",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="model", help=MODEL)
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="prompt for every model; can be repeated")
    _measure_arguments(parser)
    parser.flag("--steps", "compare all saved checkpoints of one run")
    parser.flag("--adapter-off", "also compare with the base model, without the adapter")
    _sampling_arguments(parser, temperature="0", tokens="128")
    _model_arguments(parser)
    parser.add_argument(
        "--trust-code-of",
        action="append",
        default=[],
        metavar="MODEL",
        help="run the code that comes with this model; can be repeated",
    )
    parser.option("--out", "FILE", "write the comparison to a .md or .json file", type=Path)
    _json_argument(parser)


def _export(commands: Commands) -> None:
    parser = commands.add(
        "export",
        "export a model to Hugging Face, GGUF or a Space and verify it",
        "model_commands.export",
        "export stories --to gguf --weights q8_0",
        "export stories --push me/stories --author 'Ada Lovelace' --license apache-2.0",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    _override_argument(parser, "export.weights=q8_0")
    parser.add_argument("--to", choices=("hf", "gguf", "space"), help="the format (default hf)")
    parser.add_argument("--weights", choices=("f32", "f16", "bf16", "q8_0"), help="type of the stored weights")
    parser.option("--out", "DIR", "folder to write; default: a new run in checkpoints/", type=Path)
    parser.option("--push", "OWNER/NAME", "push to this Hub repository")
    parser.flag("--public", "create the repository as public")
    parser.option("--author", "NAME", "author, for all model cards; saved for later exports")
    parser.option("--license", "ID", "license, for all model cards, such as apache-2.0 or mit; saved")
    parser.option("--intended-use", "TEXT", "what this model is for, for its model card; saved")
    parser.option("--limitations", "TEXT", "what this model can't do, for its model card; saved")
    parser.flag("--dry-run", "show compatibility and the files, without writing anything")
    _trust_argument(parser)


def _replay(commands: Commands) -> None:
    parser = commands.add(
        "replay",
        "train a model again: its run and all runs it was built from",
        "recipe_commands.replay",
        "replay demo/sft",
        "replay stories --name stories-again --dry-run",
    )
    parser.add_argument("checkpoint", metavar="model", help="a run, its name, or its model's folder")
    parser.option("--name", "NAME", "name of the new run (default <name>-replay)")
    parser.flag("--dry-run", "write the recipe and show its plan, without running it")
    parser.flag("--resume", "resume an interrupted replay")
    _trust_recipe_argument(parser)


def _look(commands: Commands) -> None:
    parser = commands.add(
        "look",
        "look inside a model: attention, heads, residual stream, logit lens",
        "study_commands.look",
        'look stories --prompt "The cat sat on the mat."',
        "look demo/sft --against demo/pretrain",
    )
    parser.add_argument("checkpoint", metavar="model", help=MODEL)
    parser.option("--against", "MODEL", "compare with this model, such as the base of a fine-tuned one")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--prompt", metavar="TEXT", help="the text that the model reads")
    text.add_argument("--prompt-file", type=Path, metavar="FILE", help="a file with the text")
    parser.flag("--steps", "also follow the heads over all checkpoints of the run")
    parser.option("--out", "DIR", "folder to write; default: look/ in the run's folder", type=Path)
    _model_arguments(parser)


def _sweep(commands: Commands) -> None:
    parser = commands.add(
        "sweep",
        SWEEP_ABOUT,
        "study_commands.sweep",
        "sweep stories optimizer.learning_rate=0.001,0.003 --seeds 3",
        "sweep my.yaml --preset optimizer --dry-run",
    )
    _compared_arguments(
        parser,
        "key=v1,v2",
        "keys to compare, each with its values, for example optimizer.learning_rate=0.001,0.003; key=value "
        "changes the recipe for all; a comma inside [], {} or quotes belongs to its value",
        "1; 5 with --preset seeds",
    )
    parser.option("--preset", "NAME", f"a grid derived from the recipe: {PRESETS}")
    _json_argument(parser)


def _duel(commands: Commands) -> None:
    parser = commands.add(
        "duel",
        DUEL_ABOUT,
        "study_commands.duel",
        "duel stories optimizer.name=adamw,muon --seeds 8",
        "duel a.yaml b.yaml --by time",
    )
    _compared_arguments(
        parser,
        "recipe | key=a,b",
        "the second recipe, or a key with two values; key=value changes the recipe for both",
        "6",
    )
    parser.add_argument(
        "--by",
        choices=("tokens", "time", "both"),
        default="both",
        help="compare at equal tokens, at equal time, or both ways (default both)",
    )
    _json_argument(parser)


def _compared_arguments(parser: Parser, metavar: str, what: str, seeds: str) -> None:
    """Add the arguments that sweeps and duels have in common. what: the help of the overrides; seeds: the default."""
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("overrides", nargs="*", default=[], metavar=metavar, help=what)
    parser.option("--seeds", "N", f"runs of each configuration: seed, seed + 1, ... (default {seeds})", type=int)
    parser.option("--jobs", "N", "runs at a time; they share the cores", type=int, default=1)
    parser.option("--measure", "NAME", "the result to compare by; default: the held-out result of the stage")
    parser.option("--name", "NAME", "folder in checkpoints/; the name of an existing one resumes it or adds runs to it")
    parser.flag("--dry-run", "check all recipes and show the plan only")
    parser.flag("--retry-failed", "also rerun failed runs")
    _trust_recipe_argument(parser)


def _study(commands: Commands) -> None:
    parser = commands.add(
        "study",
        f"run a study: {STUDY_ABOUT}; without a name, list all",
        "study_commands.study",
        "study",
        "study attention --dry-run",
    )
    parser.add_argument("name", nargs="?", help="a study's name; default: list all")
    parser.add_argument("overrides", nargs="*", default=[], metavar=STUDY_OPTION, help="options of the study to change")
    parser.flag("--dry-run", "show what it does and its options, without running it")
    parser.flag("--overwrite", "replace the study of the same name")
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)  # for the process that a study runs in
    _json_argument(parser)


def _web(commands: Commands) -> None:
    parser = commands.add(
        "web",
        "serve the lab as a web page, for a browser on this machine",
        "machine_commands.serve_web",
        "web",
        "web --port 8000",
    )
    parser.option("--port", "N", "port of the page; default: the first free one from 7750 on", type=int)


def _doctor(commands: Commands) -> None:
    parser = commands.add(
        "doctor", "show what this machine can do", "machine_commands.examine_machine", "doctor", "doctor --json"
    )
    _json_argument(parser)


def _recipe_arguments(parser: Parser) -> None:
    parser.add_argument("recipe", help=RECIPE)
    _override_argument(parser, "train.max_steps=500")


def _override_argument(parser: Parser, example: str) -> None:
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"recipe keys to change, for example {example}"
    )


def _measure_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--data", action="append", metavar="PATH", help="dataset of text to measure the loss on; can be repeated"
    )
    parser.option("--prompts", "PATH", "dataset of prompts; the outputs are scored")


def _sampling_arguments(parser: Parser, temperature: str, tokens: str) -> None:
    """Add arguments for sampling. temperature, tokens: the defaults, for the help."""
    parser.option("--max-new-tokens", "N", f"maximum length of an output, in tokens (default {tokens})", type=int)
    parser.option("--temperature", "X", f"sampling temperature; 0: greedy (default {temperature})", type=float)
    parser.option("--seed", "N", "random seed; the same seed gives the same output", type=int)


def _model_arguments(parser: Parser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="where the model runs")
    _trust_argument(parser)


def _trust_recipe_argument(parser: Parser) -> None:
    text = "run the reward functions and task files that the recipe of a run folder names"
    parser.flag("--trust-recipe", text)


def _json_argument(parser: Parser) -> None:
    parser.flag("--json", "print one JSON document; everything else goes to standard error")


def _trust_argument(parser: Parser) -> None:
    parser.flag("--trust-remote-code", "run code that comes with the model")
