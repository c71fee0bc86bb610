"""Every command and every block of code in README.md, CONTRIBUTING.md, docs/ and the study's README.

Each is parsed by its own parser, and its settings are checked. What can run here is then run, on stand-ins: tiny
checkpoints, short texts, few steps. A command that this file does not know fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import peft
import pytest
import transformers
import typer
import yaml
from accelerate.commands.launch import launch_command_parser
from typer.testing import CliRunner

from longshort.cli import app
from longshort.lmeval.task_folder import tasks_folder
from longshort.longbench.scores import DATASETS, LONGBENCH, LONGBENCH_PREFIX
from longshort.settings import settings_from
from longshort.sweep.manifest.load import load_manifest
from longshort.testing import save_corpus
from longshort.training import TrainConfig
from longshort.training.command import EPILOG
from longshort.training.extension.official_clex import import_clex
from longshort.training.sharding import Sharding, sharding_of
from tests.analysis.results_folder import save_folder
from tests.longbench.rows import make_row, official_lengths, write_rows
from tests.token_files import rows_of_document, write_token_file
from tests.training.extension.official_checkpoint import save_official
from tests.training.test_estimate import peak_of_7b
from tests.training.test_sharding import environment_of

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "results" / "study"  # not in the sdist


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    file: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.line}"


def blocks() -> Iterator[Block]:
    others = [ROOT / "CONTRIBUTING.md", STUDY / "README.md"]
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *filter(Path.is_file, others)]:
        text = path.read_text("utf-8")
        for found in re.finditer(r"^```(.*)\n((?:.*\n)*?)```$", text, re.MULTILINE):
            line = text.count("\n", 0, found.start()) + 1
            yield Block(path.relative_to(ROOT).as_posix(), line, found[1].strip(), found[2])


BLOCKS = list(blocks())
COMMANDS = [
    pytest.param(line, id=f"{block.name}:{line[:60]}")
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]


def of_language(language: str) -> list[Any]:
    return [pytest.param(block, id=block.name) for block in BLOCKS if block.language == language]


def test_every_block_is_of_a_language_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"sh", "yaml", "python", "diff"}


# What the documents' names stand for, and what is added so that a command takes seconds; of an option that is given
# twice the last counts.
NAMES = {
    "EleutherAI/pythia-1.4b": "my-checkpoint",
    "DAMO-NLP-SG/CLEX-7B-16K": "official-clex",
    "meta-llama/Llama-2-7b-hf": "my-checkpoint",
    "hf:emozilla/pg19-test::test:text": "text.jsonl",
    "pg19": "text.jsonl",
    "builtin": "text.jsonl",
}
SMALLER = {
    "eval": "--lengths 16,32 --train-length 32 --num-docs 2 --limit 1 --device cpu -o evaluated",
    "key-spans": "--corpus text.jsonl --lengths 16,32 --num-docs 2 --short 8 --stride 8 --max-loss 9 --min-gain 0 "
    "--device cpu -o found.jsonl",
    "train": "--corpus text.jsonl --eval-corpus text.jsonl --train-length 32 --steps 2 --global-batch-size 2 "
    "--batch-size 2 --warmup 0 --eval-every 0 --save-at 1 --dtype float32 -o trained",
    "import-clex": "-o imported",
    "synthetic": "--tasks length --encodings rope --train-length 3 --max-length 5 --seeds 1 --steps 2 --workers 1 -o s",
}


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a longshort command as it would get them."""
    name, *rest = words
    group = typer.main.get_command(app)
    assert name in group.commands, f"longshort has no command '{name}'"  # type: ignore[attr-defined]  # a click.Group
    return group.commands[name].make_context(name, list(rest)).params  # type: ignore[attr-defined, no-any-return]  # a Group


def longshort(words: list[str], *, stdout_only: bool = False) -> str:
    """Run a longshort command, which must succeed."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout if stdout_only else done.output


def on_stand_ins(words: list[str]) -> list[str]:
    return [NAMES.get(word, word) for word in words]


def check_longshort(words: list[str]) -> None:
    name, options = words[0], parsed(words)
    if name == "eval":
        settings_from({key: options[key] for key in ("corpus", "lengths", "train_length", "num_docs", "tail_tokens")})
        if options["tasks"] == LONGBENCH:
            words = [*words, "--tasks", f"{LONGBENCH_PREFIX}trec", "--model-args", "max_length=1024"]
        elif "ruler" in (options["tasks"] or ""):  # its documents need the network
            words = [*words, "--tasks", "longshort_perplexity"]
    elif name == "train":
        longshort([*words, "--print-config"])
        if options["print_config"]:
            return
        if "paper" in (options["preset_name"] or ""):  # its base is a model of 7B
            words = [*words, "--base", "my-checkpoint"]
    elif name == "sweep":
        check_sweep(options["manifest"], words)
        return
    elif name == "correlate":
        words = ["correlate", "others", *words[2:]]
    smaller = shlex.split(SMALLER.get(name, ""))
    if options.get("tasks") == "longshort_retrieval":
        smaller += ["--lengths", "150,250", "--needles", "1"]  # a byte is a token
    told = longshort([*on_stand_ins(words), *smaller])
    where = {"eval": "has the results", "key-spans": "found.jsonl", "train": "Checkpoint written to trained"}
    assert where.get(name, "") in told


def check_sweep(manifest: str, words: list[str]) -> None:
    """The plan of the manifest itself; then the command on one checkpoint, whose results are there."""
    checkpoints = load_manifest(manifest)
    assert f"{len(checkpoints)} checkpoints: " in longshort([*words, "--dry-run"])
    words = ["own.yaml" if word == manifest else word for word in words]
    if "ray" not in words:
        assert "2 results exist" in longshort(words) if "--dry-run" in words else "2 existing" in longshort(words)


def check_lm_eval(words: list[str]) -> None:
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.tasks import TaskManager

    sys.argv = ["lm_eval", *words]
    options = HarnessCLI().parse_args()
    settings_from(options.metadata)
    assert {*options.metadata} <= {"corpus", "lengths", "train_length", "longbench_dir"}
    known = TaskManager(include_path=options.include_path, include_defaults=False).all_tasks
    assert {*options.tasks} <= {*known}
    if options.model == "hf":
        smaller = {"corpus": "text.jsonl", "lengths": [16, 32], "train_length": 32, "num_docs": 2}
        sys.argv += ["--metadata", json.dumps(smaller), "--device", "cpu"]
        with pytest.MonkeyPatch.context() as patch:  # its own thousands of tasks take seconds to find
            patch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
            HarnessCLI().execute(HarnessCLI().parse_args())
        (file,) = Path("results").glob("*my-checkpoint/results_*.json")
        assert "sce@32,none" in json.loads(file.read_text())["results"]["longshort_misalignment"]


def check_make(words: list[str]) -> None:
    assert subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode == 0


def check_pip(words: list[str]) -> None:
    command, what = words
    extras = re.fullmatch(r"\.(?:\[(.+)\])?", what)
    assert command == "install"
    assert extras
    assert extras[1] is None or extras[1] in (metadata("longshort").get_all("Provides-Extra") or [])


def check_pytest(words: list[str]) -> None:
    assert words[:2] == ["-n", "1"]
    files = words[2 : words.index("-k") if "-k" in words else None]
    assert all((ROOT / path).exists() for path in files)


class Parsed(Exception):
    """The command line has been read; the rest would take minutes."""


def check_python(words: list[str]) -> None:
    """A script of ours, up to where it has read its options."""
    script, *options = words
    assert (ROOT / script).is_file()
    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, arguments: Any = None, namespace: Any = None) -> None:
        parse(self, arguments, namespace)
        raise Parsed

    name = Path(script).stem
    if name == "benchmark":  # names the module that reads the rest
        module = importlib.import_module("scripts.benchmark")
        assert options[0] in module.BENCHMARKS
        name = f"benchmarks.{options.pop(0)}"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script, *options])
        patch.setattr(sys, "excepthook", sys.excepthook)  # a script may set its own
        patch.setattr("torch.cuda.is_available", lambda: True)  # a benchmark of GPUs asks for one first
        main: Callable[[], None] = importlib.import_module(name).main
        with pytest.raises(Parsed):
            main(options) if main.__code__.co_argcount else main()  # type: ignore[call-arg]  # some mains take the options


def check_accelerate(words: list[str]) -> None:
    command, *rest = words
    assert command == "launch"
    options = launch_command_parser().parse_args(rest)
    assert options.training_script == "scripts/train.py"
    longshort(["train", *options.training_script_args, "--print-config"])


def check_ray(words: list[str]) -> None:
    from ray.scripts.scripts import cli

    command, *rest = words
    cli.commands[command].make_context(command, rest)


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "longshort": check_longshort,
    "lm_eval": check_lm_eval,
    "make": check_make,
    "pip": check_pip,
    "pytest": check_pytest,
    "python": check_python,
    "accelerate": check_accelerate,
    "ray": check_ray,
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents' commands find in theirs."""
    place = tmp_path_factory.mktemp("stand-ins")
    save_corpus(place / "text.jsonl", num_docs=4, num_bytes=1500)
    shutil.copy(place / "text.jsonl", place / "book.jsonl")
    (place / "texts").mkdir()
    shutil.copy(place / "text.jsonl", place / "texts")
    shape = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "max_position_embeddings": 128}
    (place / "config.json").write_text(json.dumps({"model_type": "llama"} | shape | more))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        smaller = shlex.split(SMALLER["train"])[:-2]
        longshort(["train", "--config", "config.json", "--tokenizer", "bytes", *smaller, "-o", "my-checkpoint"])
        clex = ["--extension", "clex", "--factor", "4", "-o", "clex-a0.1"]
        longshort(["train", "--base", "my-checkpoint", *smaller, *clex])
        longshort(["key-spans", "my-checkpoint", *shlex.split(SMALLER["key-spans"])])
    shutil.move(place / "found.jsonl", place / "spans.jsonl")
    base = transformers.AutoModelForCausalLM.from_pretrained(place / "my-checkpoint")
    save_official(place / "official-clex", base, transformers.AutoTokenizer.from_pretrained(place / "my-checkpoint"))
    import_clex(place / "official-clex", place / "clex-7b-16k")
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear")).save_pretrained(place / "my-adapter")
    for name in ("a0", "a0.1"):
        shutil.copytree(place / "my-checkpoint", place / "my-checkpoints" / name)
    for seed in range(3):
        shutil.copytree(place / "clex-a0.1", place / "gpu" / f"clex-a0.1-s{seed}")
    if STUDY.is_dir():
        (place / "results" / "study").mkdir(parents=True)
        shutil.copy(STUDY / "gpu.yaml", place / "results" / "study")

    # A sweep as it is afterwards, and results of more checkpoints.
    entry = {"pretrained": str(place / "my-checkpoint"), "dtype": "float32", "resources": {"cpus": 1}}
    settings = {"corpus": str(place / "text.jsonl"), "lengths": [16, 32], "num_docs": 2}
    (place / "own.yaml").write_text(yaml.safe_dump({"defaults": settings, "checkpoints": [entry]}))
    command = [sys.executable, "-m", "longshort", "sweep", "own.yaml", "-o", "results"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    save_folder(place / "others", families=4, members=2)
    for index, file in enumerate((place / "others").rglob("*.json")):
        data = json.loads(file.read_text())
        scores = {f"{length},none": 1 / (length * (1 + index)) for length in (4096, 8192)}
        data["results"] |= {"ruler": scores, "niah_multikey_1": scores}
        file.write_text(json.dumps(data))

    texts = [f" word{index}" for index in range(4096)]
    rows = [row for index in range(4) for row in rows_of_document(index, texts, (512, 4096))]
    write_token_file(place / "tokens.parquet", rows)
    write_rows(place / "longbench", count=1, words=40)
    with zipfile.ZipFile(place / "data.zip", "w") as archive:
        for file in (place / "longbench").iterdir():
            archive.write(file, f"data/{file.name}")
    (place / "pred_e" / "my-checkpoint").mkdir(parents=True)
    samples = place / "results" / "my-checkpoint"
    samples.mkdir()
    for dataset in DATASETS:
        rows = [
            make_row(dataset, index, words=4) | {"length": length}
            for index, length in enumerate(official_lengths(dataset))
        ]
        lines = [json.dumps(row | {"pred": "an answer"}) for row in rows]
        (place / "pred_e" / "my-checkpoint" / f"{dataset}.jsonl").write_text("\n".join(lines))
        lines = [json.dumps({"doc": row, "filtered_resps": ["an answer"]}) for row in rows]
        name = f"samples_longshort-longbench-e-{dataset}_2025-01-01T00-00-00.000000.jsonl"
        (samples / name).write_text("\n".join(lines))
    for names, block in zip(MANIFESTS, [block for block in BLOCKS if block.language == "yaml"], strict=True):
        (place / names).write_text(block.text)
    return place


MANIFESTS = (
    "checkpoints.yaml",
    "mine.yaml",
    "ruler.yaml",
)  # as the commands around them call the YAML blocks, in their order


@pytest.fixture
def here(stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stand-ins as working folder; no figures are drawn, which takes seconds."""
    place = tmp_path / "here"
    shutil.copytree(stand_ins, place)
    for name in ("small-results", "my-results", "paper-results", "gpu-results"):
        (place / name).symlink_to("results")
    monkeypatch.chdir(place)
    monkeypatch.setattr("longshort.analysis.figures.draw_figures", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["longshort"])
    return place


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command: str, here: Path) -> None:
    words = shlex.split(command.replace("$(longshort tasks)", str(tasks_folder())), comments=True)
    while re.match(r"\w+=", words[0]):  # variables of the environment
        words.pop(0)
    program, *rest = words
    assert program in CHECKS, f"tests/test_readme.py does not know how to check '{program}'"
    CHECKS[program](rest)


# Commands that train a model of 7B, in the documents, the help and the docstring of the script.
HELP = [paragraph.replace("\n", " ") for paragraph in EPILOG.split("\n\n")[1:]]
SCRIPT = (ROOT / "scripts" / "train.py").read_text("utf-8").split('"""')[1].splitlines()
OF_7B = [
    line
    for line in [*(param.values[0] for param in COMMANDS), *HELP, *SCRIPT]
    if re.search(r"scripts/train\.py|longshort train", line) and re.search("paper-|[lL]lama", line)
]


@pytest.mark.parametrize("command", sorted({line for line in OF_7B if "--print-config" not in line}))
def test_training_of_7b_fits_the_cards_it_names(command: str) -> None:
    """By the estimate, with a tenth to spare for the allocator."""
    cards = re.search(r"# (\d+) × (\d+) GB$", command.strip())
    assert cards, "name the cards at the end of the command, such as '# 8 × 80 GB'"
    words, sharding = shlex.split(command, comments=True), Sharding()
    if words[0] == "accelerate":
        launch = launch_command_parser().parse_args(words[2:])
        sharding, words = sharding_of(environment_of(launch)), ["longshort", "train", *launch.training_script_args]
    assert sharding.processes == int(cards[1])
    shown = json.loads(longshort([*words[1:], "--print-config"], stdout_only=True))
    wanted = TrainConfig(**{name: tuple(value) if isinstance(value, list) else value for name, value in shown.items()})
    assert peak_of_7b(wanted, sharding, wanted.asks_for_4_bits) < 0.9 * int(cards[2]) * 1e9 / 2**30


def test_there_are_commands_for_8_cards_and_for_one() -> None:
    assert {cards for line in OF_7B for cards in re.findall(r"# (.*) GB", line)} >= {"8 × 80", "1 × 24"}


@pytest.mark.parametrize("block", of_language("python"))
def test_python(block: Block, here: Path) -> None:
    shutil.rmtree("results")
    (here / "others").rename("results")
    exec(compile(block.text, block.name, "exec"), {"__name__": block.name})


@pytest.mark.parametrize("block", of_language("yaml"))
def test_manifests(block: Block, here: Path) -> None:
    (here / "manifest.yaml").write_text(block.text)
    assert load_manifest("manifest.yaml")


@pytest.mark.parametrize("block", of_language("diff"))
def test_diffs_start_from_what_is_there(block: Block) -> None:
    """Lines that stay or go are in one file of the source, and so is the function named."""
    sources = [file.read_text("utf-8") for file in (ROOT / "harness").rglob("*.py")]
    lines = [line[1:] for line in block.text.splitlines() if line[0] in " -"]
    lines += [line.removeprefix("@@ ") for line in block.text.splitlines() if line.startswith("@@")]
    assert any(all(line in source for line in lines) for source in sources)
