"""The model card: README.md of a model folder, from the facts of the run that made it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from llm_lab.errors import UserError
from llm_lab.estimate.formatting import count, duration
from llm_lab.estimate.model_library import find_in_library
from llm_lab.recipe.files import read_recipe_file
from llm_lab.recipe.pretrain import PRETRAIN
from llm_lab.recipe.registry import STAGES
from llm_lab.safe_text import redact

from .card_answers import OF_ALL_MODELS, license_facts, read_answers
from .describe import VERDICTS, data_rows, headline_results, name_program, versions, warnings_of
from .disk import write_atomically
from .evaluations import named_results
from .glossary import OF_THE_MACHINE, name_of
from .lineage import Node, main_line, trace
from .loading import (
    ADAPTER,
    GGUF,
    LIBRARIES,
    ModelFolder,
    count_parameters,
    describe_form,
    inspect_folder,
    loading_code,
)
from .markdown import Markdown, code, fence, is_absolute, plain, table, texts_in, without_paths
from .record import is_number
from .report import RESULT_HEAD, result_rows

NAME = "README.md"
# Results about the run, and columns of metrics.jsonl about one step; neither describes the model.
NOT_SHOWN = {*OF_THE_MACHINE, "step", "size_bytes"}
OF_THE_STEP = {"step", "learning_rate", "grad_norm", "epochs", "mix", *OF_THE_MACHINE}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def write_card(
    folder: Path,
    *,
    source: str | Path | None = None,
    proof: Mapping[str, Any] | None = None,
    repo: str | None = None,
    answers: Mapping[str, str] | None = None,
) -> str:
    """Write README.md into a model folder; returns its text.

    source: the folder of the weights (or a name on the Hub) that `folder` was made from, if different. proof: the
    outcome of loading it, as in run.json. repo: owner/name of the push on the Hub. answers: author, license and so on;
    by default, what the user has given before (UserError if that can't be read).
    """
    model = inspect_folder(folder)
    node = trace(str(source or folder), digest_of=lambda path: None)
    answers = read_answers(node.run) if answers is None else answers
    text = front_matter(model, node, answers) + "\n".join(_body(model, node, proof, repo, answers))
    text = redact(without_paths(text, tuple(_known_paths(node))))
    write_atomically(folder / NAME, text)
    return text


# The front matter, which the Hub reads


def front_matter(folder: ModelFolder, node: Node, answers: Mapping[str, str]) -> str:
    """Return the YAML block at the top of a model card."""
    facts: dict[str, Any] = {
        "library_name": LIBRARIES[folder.kind],
        "pipeline_tag": "text-classification" if folder.is_reward_model else "text-generation",
        "tags": ["llm-lab", *([node.stage] if node.stage else []), *(["lora"] if folder.kind == ADAPTER else [])],
    }
    if answers.get("license"):
        facts |= license_facts(answers["license"])
    base = hub_base(node)
    if base is not None:
        facts["base_model"] = base
        relation = _relation(folder, node)
        facts |= {"base_model_relation": relation} if relation else {}
    datasets = [item["path"] for one in main_line(node) for item in one.facts.get("data") or () if item.get("hub")]
    if datasets:
        facts["datasets"] = list(dict.fromkeys(datasets))
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}---\n\n"


def hub_base(node: Node) -> str | None:
    """Return the nearest model in the lineage, before this one, that is on the Hub, or None."""
    before = [node] if node.run is None else list(reversed(main_line(node)[:-1]))
    for one in before:
        if one.run is not None and one.facts.get("pushed"):
            return one.facts["pushed"]["repo"]
        if one.run is None and is_hub_name(one.place):
            return one.place
    return None


def is_hub_name(place: str) -> bool:
    """Whether a model has the form of a name on the Hub, and is not a folder here."""
    return _HUB_NAME.fullmatch(place) is not None and not Path(place).exists()


def _relation(folder: ModelFolder, node: Node) -> str | None:
    """Return the Hub's word for how the model relates to its base; None for the same weights in the same format."""
    if folder.kind == ADAPTER:
        return "adapter"
    if node.run is None:
        return "quantized" if folder.kind == GGUF else None
    return "finetune"  # also for a merged adapter: on the Hub, "merge" means several models merged into one


# The text


def _body(
    folder: ModelFolder, node: Node, proof: Mapping[str, Any] | None, repo: str | None, answers: Mapping[str, str]
) -> Iterator[str]:
    facts = node.facts
    step = f", checkpoint of step {node.step:,}" if node.step is not None else ""
    name = (repo or "").rpartition("/")[2] or (_name(node) if node.run else Path(node.place).name)
    yield f"# {plain(name)}\n"
    stage = STAGES.get(node.stage or "")
    if stage is not None and stage.made:
        what = "A language model" if stage.makes == "model" else f"A {stage.makes}"
        yield f"{what} made with LLM Lab: {stage.made}{step}.\n"
    else:
        yield "A language model, converted by LLM Lab.\n"
    yield from _section("Model", table(("", ""), _model_rows(folder, node, answers)))
    yield from _section("Intended use", _texts(answers, "intended_use"))
    snippets = loading_code(folder, repo or ".", in_transformers=_is_proven(proof, "Transformers"))
    where = "" if repo else "From this folder:"
    lines = [where, *(fence(text, language) for language, text in snippets), *_requirements(folder)]
    yield from _section("Usage", lines)
    yield from _section("Verification", _verification(proof))
    yield from _section("Results", table(RESULT_HEAD, result_rows(_results(node))))
    yield from _section("Evaluations", table(("data", *RESULT_HEAD), _evaluation_rows(node)))
    rows = [[code(path), code(fingerprint), amount] for path, fingerprint, amount in data_rows(facts)]
    yield from _section("Data", table(("data", "fingerprint", "used"), rows))
    yield from _section("Lineage", table(("stage", "model", "made from", "results"), _lineage(node)))
    recorded = [f"- {plain(line)}" for line in (warnings_of(node.run) if node.run else [])]
    yield from _section("Limitations", [*_texts(answers, "limitations"), *recorded])
    yield from _section("Training", _training(node))


def _texts(answers: Mapping[str, str], key: str) -> list[str]:
    """Return an answer as paragraphs."""
    return [f"{plain(part)}\n" for part in answers.get(key, "").splitlines() if part.strip()]


def _requirements(folder: ModelFolder) -> list[str]:
    """Return what is required to run the code elsewhere."""
    if folder.kind == ADAPTER and folder.base and not is_hub_name(folder.base):
        fix = "Elsewhere, set its path in adapter_config.json, or merge first: `llm-lab merge`"
        return [f"The base model was in a local folder of the machine that made the adapter. {fix}."]
    return []


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    lines = [line for line in lines if line]
    if lines:
        yield f"## {title}\n"
        yield from lines
        yield ""


def _model_rows(folder: ModelFolder, node: Node, answers: Mapping[str, str]) -> Iterator[list[str]]:
    facts, config = node.facts, folder.config
    yield from ([key, answers[key]] for key in OF_ALL_MODELS if answers.get(key))
    known = find_in_library(base) if (base := hub_base(node)) else None
    if known:
        yield ["license of the base", known.license]
    if node.stage == PRETRAIN.name and facts.get("model"):
        yield ["parts", facts["model"]]
    yield ["format", describe_form(folder)]
    if folder.kind == ADAPTER:
        yield ["base", code(_origin(node) or folder.base or "")]
    sizes = {"num_hidden_layers": "layers", "hidden_size": "hidden size", "num_attention_heads": "attention heads"}
    found = [f"{word} {config[key]:,}" for key, word in sizes.items() if isinstance(config.get(key), int)]
    if found:
        yield ["size", ", ".join(found)]
    for key, word in (("vocab_size", "vocabulary"), ("max_position_embeddings", "context")):
        if isinstance(config.get(key), int):
            yield [word, f"{config[key]:,} tokens"]
    parameters = count_parameters(folder.path)
    if parameters:
        yield ["adapter parameters" if folder.kind == ADAPTER else name_of("parameters"), _counted(parameters)]
    trained, of_all = facts.get("trained_parameters"), facts.get("parameters")
    if trained and of_all:
        share = "all" if trained == of_all else f"{_counted(trained)} of {count(of_all)}"
        yield ["parameters trained in this stage", share]
    tokens = _results(node).get("train_tokens")
    if tokens:
        yield ["tokens trained on in this stage", _counted(tokens)]


def _counted(number: int) -> str:
    """Return a short form of a count, and all its digits if these say more."""
    return f"{count(number)} ({number:,})" if number >= 10_000 else f"{number:,}"


def _results(node: Node) -> dict[str, Any]:
    """Return the results of a model; for a checkpoint within a run, those measured up to its step."""
    found = dict(_run_results(node))
    if node.step is not None and node.run is not None:
        found = {}
        for row in node.run.metrics():
            if row.get("step", 0) <= node.step:
                found |= {key: value for key, value in row.items() if key not in OF_THE_STEP}
    return {key: value for key, value in found.items() if key not in NOT_SHOWN and is_number(value)}


def _evaluation_rows(node: Node) -> Iterator[list[str]]:
    """Yield a row for each result of the last three evaluations of these exact weights."""
    here = Path(node.place).resolve()
    for evaluation in [row for row in node.evaluations if Path(str(row.get("checkpoint"))).resolve() == here][-3:]:
        data = Markdown(", ".join(code(item["path"]) for item in evaluation.get("data") or ()))
        results = named_results(evaluation)
        of_the_model = {key: value for key, value in results.items() if "second" not in key}  # not the speed here
        yield from ([data, *row] for row in result_rows(of_the_model))


def _is_proven(proof: Mapping[str, Any] | None, program: str) -> bool:
    checks = (proof or {}).get("checks") or ()
    return any(check["program"].startswith(program) and check["verdict"] == "proven" for check in checks)


def _verification(proof: Mapping[str, Any] | None) -> Iterator[str]:
    if not proof:
        return
    yield f"Loaded without LLM Lab and compared with the original model: **{VERDICTS[proof['verdict']]}**.\n"
    rows = []
    for check in proof.get("checks") or ():
        details = check.get("reason") or ""
        if check.get("logit_difference") is not None:
            details = (
                f"{name_of('logit_difference')} at most {check['logit_difference']:.2g} "
                f"(relative {check['relative_logit_difference']:.2g}, allowed {check['tolerance']:.2g}), "
                f"{name_of('agreement')} {100 * check['greedy_agreement']:.4g} % of {check['positions']:,} positions, "
                f"{check['texts_alike']} of {check['texts']} texts tokenized identically"
                + (f"; {details}" if details else "")
            )
        rows.append([name_program(check), VERDICTS[check["verdict"]], check.get("loaded_as") or "", details])
    yield from table(("program", "verdict", "loaded as", "details"), rows)


def _lineage(node: Node) -> Iterator[list[str]]:
    line = main_line(node)
    if len(line) < 2 and node.parent is None:
        return
    for one in line:
        origin = _origin(one) or ("scratch" if one.stage == PRETRAIN.name else "")
        results = ", ".join(headline_results(_results(one)))
        yield [one.stage or "", code(_name(one)), code(origin) if origin else "", results]


def _origin(node: Node) -> str | None:
    """Return the name of the model that the model was made from."""
    if node.parent is None:
        return None
    return _name(node.parent.node) if node.parent.node else node.parent.place


def _name(node: Node) -> str:
    """Return the name of a model: its run's, with the pipeline that it belongs to, or its own name."""
    if node.run is None:
        return node.place
    path = node.run.path.resolve()
    return f"{path.parent.name}/{path.name}" if (path.parent / "run.json").is_file() else path.name


def _run_results(node: Node) -> dict[str, Any]:
    return node.facts.get("results") or {}


def _training(node: Node) -> Iterator[str]:
    facts, results = node.facts, _run_results(node)
    if node.run is None:
        return
    words = [f"Machine: {facts['machine']}." if facts.get("machine") else ""]
    words += [f"Time: {duration(results['wall_seconds'])}." if results.get("wall_seconds") else ""]
    words += [f"Versions: {versions(facts)}." if facts.get("versions") else ""]
    yield plain(" ".join(part for part in words if part)) + "\n"
    try:
        recipe = node.run.recipe_path.read_text(encoding="utf-8")
    except OSError:
        return
    yield "The recipe, for `llm-lab run` (local paths are shortened to their last part):\n"
    yield fence(recipe.strip(), "yaml")


def _known_paths(node: Node) -> Iterator[str]:
    """Yield the paths in a run's record and recipe."""
    for one in main_line(node):
        yield from filter(is_absolute, texts_in([one.place, dict(one.facts), list(one.evaluations)]))
        if one.run is not None:
            yield str(one.run.path)
            try:
                yield from filter(is_absolute, texts_in(read_recipe_file(one.run.recipe_path)))
            except UserError:
                continue
