"""Each patch of another library: the behaviour without it, which fails once the patch is not needed, and with it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.utils.collect_env as collect_env
import tqdm
import transformers
from lm_eval import evaluator
from lm_eval.api import metrics
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from longshort.corpora import Document
from longshort.errors import UserError
from longshort.lmeval import compat, requests
from longshort.lmeval.base import LongShortTask
from longshort.lmeval.bootstrap import perplexity, perplexity_stderr
from longshort.lmeval.compat import environment, no_random_weights, quiet
from longshort.lmeval.longppl_task import LongPPLTask
from longshort.lmeval.parallel import SharedGeneration
from longshort.lmeval.token_values import TaskValues
from longshort.results.tokens import RECORD, TokenFile, token_file_of
from longshort.settings import EvalSettings
from longshort.testing import save_checkpoint, tiny_tokenizer
from tests.errors import assert_one, user_error
from tests.lmeval.conftest import run, values
from tests.lmeval.test_documents import Model
from tests.lmeval.windows import random_windows


@pytest.fixture(autouse=True)
def installed() -> None:
    compat.install()


def settings(corpus: Path) -> dict[str, Any]:
    return {"corpus": str(corpus), "lengths": [16], "num_docs": 2}


# ---- request types


@pytest.mark.parametrize("task", [requests.PERPLEXITY, requests.MISALIGNMENT])
def test_lm_eval_calls_the_method_named_like_the_request_type(
    task: str, llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert values(run(llama, [task], settings(corpus)), task)
    monkeypatch.delattr(LM, requests.REQUEST)
    with pytest.raises(AttributeError, match=requests.REQUEST):
        run(llama, [task], settings(corpus))


# ---- standard error of a perplexity


def test_lm_eval_has_no_standard_error_for_the_perplexity_of_another_package() -> None:
    log_likelihoods = [0.5, 1.5, 1.0, 3.0]
    assert metrics.stderr_for_metric.__wrapped__(perplexity, 300) is None
    assert metrics.stderr_for_metric(perplexity, 300)(log_likelihoods) == perplexity_stderr(log_likelihoods, 300)
    assert metrics.stderr_for_metric(perplexity, 1) is None


def test_lm_eval_starts_a_pool_of_processes_for_its_own_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    def pool(*_: Any) -> None:
        raise ChildProcessError

    monkeypatch.setattr(multiprocessing, "Pool", pool)
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    with pytest.raises(ChildProcessError):
        metrics.stderr_for_metric.__wrapped__(metrics.perplexity, 300)([0.5, 1.5])


def test_the_standard_errors_of_other_metrics_are_lm_evals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    numbers = [0.5, 1.5, 1.0, 3.0]
    own = metrics.stderr_for_metric(metrics.perplexity, 300)
    assert own(numbers) == metrics.bootstrap_stderr(metrics.perplexity, numbers, 300)
    assert own(numbers) != perplexity_stderr(numbers, 300)
    median = metrics.stderr_for_metric(metrics.median, 300)
    assert median(numbers) == metrics.bootstrap_stderr(metrics.median, numbers, 300)
    assert metrics.stderr_for_metric(metrics.mean, 300) is metrics.mean_stderr
    assert metrics.stderr_for_metric(max, 300) is None
    assert metrics.stderr_for_metric(metrics.perplexity, 0) is None


# ---- data parallel


class FirstOfTwo(HFLM):
    """The first of two processes; the second has no value of the first metric that is asked for."""

    def all_gather(self, tensor: Any) -> Any:
        return tensor.repeat(2)

    def barrier(self) -> None:
        pass


@pytest.fixture
def first_of_two(llama: Path, monkeypatch: pytest.MonkeyPatch) -> HFLM:
    lm = FirstOfTwo(str(llama), device="cpu")
    monkeypatch.setattr(lm, "_world_size", 2)

    def gather(found: list[Any], answers: Any) -> None:
        found[:] = [answers] * 2

    def gather_object(obj: Any, object_gather_list: list[Any], dst: int) -> None:
        object_gather_list[:] = [obj, {task: {} for task in obj}]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    monkeypatch.setattr("torch.distributed.gather_object", gather_object)
    return lm


def test_lm_eval_fails_if_another_process_lacks_a_metric(
    first_of_two: HFLM, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = requests.MISALIGNMENT
    one_document = settings(corpus) | {"num_docs": 1}
    assert values(run(first_of_two, [task], one_document, log_samples=False), task)
    monkeypatch.setattr(HFLM, "gather_object", HFLM.gather_object.__wrapped__)
    with pytest.raises(KeyError, match="sce@16"):
        run(first_of_two, [task], one_document, log_samples=False)


# ---- generation


class EndsAtComma(SharedGeneration):
    def for_model(self, lm: Any) -> Instance:
        prompt, options = self.arguments
        ends = {"eos_token_id": lm.tokenizer.encode(",")}
        return Instance("generate_until", self.doc, (prompt, options | ends), self.idx)


def test_lm_eval_passes_on_no_token_settings_and_answers_every_request(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    generate = transformers.GenerationMixin.generate

    def recorded(model: Any, *arguments: Any, **options: Any) -> Any:
        calls.append(options.get("eos_token_id"))
        return generate(model, *arguments, **options)

    monkeypatch.setattr(transformers.GenerationMixin, "generate", recorded)
    lm = HFLM(str(llama), device="cpu")
    options = {"until": [], "max_gen_toks": 2, "do_sample": False}
    own = [EndsAtComma("generate_until", {}, (text, dict(options)), 0) for text in ("one", "two")]
    other = Instance("generate_until", {}, ("three", dict(options)), 0)
    whole = HFLM.generate_until.__wrapped__(lm, [own[0], other, own[1]], disable_tqdm=True)
    assert calls == [None, None, None]
    calls.clear()
    patched = lm.generate_until([own[0], other, own[1]], disable_tqdm=True)
    comma = lm.tokenizer.encode(",")
    assert calls == [comma, comma, None]
    assert patched[1] == whole[1]

    shared: list[dict[int, str]] = []
    monkeypatch.setattr(lm, "_world_size", 2)
    monkeypatch.setattr(compat, "share", lambda lm, answers: shared.append(answers) or answers | {2: "of the other"})
    assert lm.generate_until([own[0], other, own[1]], disable_tqdm=True) == [patched[0], patched[1], "of the other"]
    assert [list(answers) for answers in shared] == [[0]]


def test_until_would_stop_at_a_leading_newline(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = HFLM(str(llama), device="cpu")
    newline = lm.tokenizer.encode("\nab", return_tensors="pt")
    monkeypatch.setattr(
        transformers.GenerationMixin, "generate", lambda *_, input_ids, **__: torch.cat([input_ids, newline], dim=1)
    )
    request = Instance("generate_until", {}, ("one", {"until": ["\n"], "max_gen_toks": 3, "do_sample": False}), 0)
    assert HFLM.generate_until.__wrapped__(lm, [request], disable_tqdm=True) == [""]


# ---- quiet


def test_lm_eval_lets_git_complain_outside_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    before = evaluator.get_git_commit_hash()
    assert "not a git repository" in capfd.readouterr().err
    with quiet():
        assert evaluator.get_git_commit_hash() == before
    assert capfd.readouterr().err == ""


def test_lm_eval_warns_of_different_numbers_of_documents(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "uneven"
    corpus.mkdir()
    for size in (20, 80):
        (corpus / f"{size}.txt").write_text("x" * size)
    uneven = {"corpus": f"{corpus}/*.txt", "lengths": [16, 32], "num_docs": 2}
    logging.getLogger("lm_eval.evaluator_utils").setLevel(logging.NOTSET)
    run(llama, [requests.PERPLEXITY], uneven)
    assert any(record.name == "lm_eval.evaluator_utils" for record in caplog.records)
    caplog.clear()
    with quiet():
        run(llama, [requests.PERPLEXITY], uneven)
    assert not any(record.name == "lm_eval.evaluator_utils" for record in caplog.records)


def test_lm_eval_prints_a_line_and_a_bar_for_a_bootstrap(capsys: pytest.CaptureFixture[str]) -> None:
    metrics.bootstrap_stderr(metrics.median, [0.5, 1.5, 1.0], 10)
    loud = capsys.readouterr()
    assert "median" in loud.out
    assert "it/s" in loud.err
    with quiet():
        metrics.bootstrap_stderr(metrics.median, [0.5, 1.5, 1.0], 10)
    still = capsys.readouterr()
    assert (still.out, still.err) == ("", "")


@pytest.fixture
def fresh() -> Iterator[None]:
    environment.cache_clear()
    yield
    environment.cache_clear()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands of the processes that were started."""
    found: list[str] = []
    popen = subprocess.Popen

    def counting(command: object, *arguments: Any, **options: Any) -> subprocess.Popen[str]:
        found.append(str(command))
        return popen(command, *arguments, **options)  # type: ignore[call-overload, no-any-return]  # any form of Popen

    monkeypatch.setattr(subprocess, "Popen", counting)
    return found


def without_clock_rate(text: str) -> list[str]:
    """Lines other than the processor's present frequency."""
    return [line for line in text.splitlines() if "MHz" not in line and "scaling" not in line]


def test_torch_starts_programs_at_every_call_pip_among_them(fresh: None, started: list[str]) -> None:
    collect_env.get_pretty_env_info()
    count = len(started)
    assert any("pip" in command for command in started)
    collect_env.get_pretty_env_info()
    assert len(started) == 2 * count


def test_the_environment_is_collected_once_and_without_pip(fresh: None, started: list[str]) -> None:
    with quiet():
        first = collect_env.get_pretty_env_info()
        count = len(started)
        assert collect_env.get_pretty_env_info() == first
    assert 0 < count == len(started)
    assert not any("pip" in command for command in started)


def test_the_environment_is_the_one_that_torch_reports(fresh: None) -> None:
    assert "[pip3] torch==" in environment()
    assert without_clock_rate(environment()) == without_clock_rate(collect_env.get_pretty_env_info())


def test_everything_is_as_it_was_afterwards() -> None:
    def replaced() -> list[Any]:
        functions = [collect_env.get_pretty_env_info, collect_env.get_pip_packages, evaluator.get_git_commit_hash]
        return [tqdm.tqdm, *functions, transformers.PreTrainedModel.__dict__["from_pretrained"]]

    before = replaced()
    with quiet(), no_random_weights():
        assert tqdm.tqdm is not before[0]
        assert transformers.PreTrainedModel.__dict__["from_pretrained"] is not before[-1]
    environment()
    assert replaced() == before


# ---- weights


def without(folder: Path, to: Path, is_lost: Callable[[str], bool], file: str = "model.safetensors") -> Path:
    """A copy whose file lacks some tensors."""
    shutil.copytree(folder, to)
    kept = {name: value for name, value in load_file(to / file).items() if not is_lost(name)}
    save_file(kept, to / file, metadata={"format": "pt"})
    return to


def refused(load: Callable[[], Any]) -> UserError:
    with pytest.raises(UserError) as caught, no_random_weights():
        load()
    assert caught.value.kind == "broken"
    return caught.value


@pytest.fixture(params=[transformers.logging.WARNING, transformers.logging.ERROR], ids=["warning", "error"])
def verbosity(request: pytest.FixtureRequest) -> Iterator[None]:
    """As TRANSFORMERS_VERBOSITY sets it."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(request.param)
    yield
    transformers.logging.set_verbosity(before)


@pytest.mark.parametrize(
    ("lost", "count", "first"),
    [
        ("lm_head", 1, "lm_head.weight"),
        ("up_proj", 2, "model.layers.0.mlp.up_proj.weight"),  # of every layer
        ("model.layers.1.", 9, "model.layers.1.input_layernorm.weight"),
    ],
)
def test_transformers_initializes_missing_weights_at_random(
    llama: Path, tmp_path: Path, verbosity: None, lost: str, count: int, first: str
) -> None:
    folder = without(llama, tmp_path / "lacking", lambda name: lost in name)
    load = transformers.AutoModelForCausalLM.from_pretrained
    assert first in load(folder).state_dict()
    message = refused(lambda: load(folder)).message
    assert all(fact in message for fact in (str(folder), f" {count} ", first))


def test_whole_checkpoints_and_shared_weights_are_loaded(llama: Path, gpt2: Path) -> None:
    assert "lm_head.weight" not in load_file(gpt2 / "model.safetensors")  # the embedding's weight serves as it
    with no_random_weights():
        for folder in (llama, gpt2):
            assert transformers.AutoModelForCausalLM.from_pretrained(folder) is not None
        _, info = transformers.AutoModelForCausalLM.from_pretrained(llama, output_loading_info=True)
    assert not info["missing_keys"]


def test_peft_only_warns_of_missing_adapter_weights(llama: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> Any:
        return peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(llama), folder)

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    with no_random_weights():
        assert load(tmp_path / "adapter") is not None
    folder = without(
        tmp_path / "adapter", tmp_path / "lacking", lambda name: "layers.1" in name, "adapter_model.safetensors"
    )
    with pytest.warns(UserWarning, match="missing adapter keys"):
        assert load(folder) is not None
    assert "layers.1" in refused(lambda: load(folder)).message


# ---- tokenizers without special tokens


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> HFLM:
    """A checkpoint whose tokenizer declares no special token."""
    folder = save_checkpoint(tmp_path_factory.mktemp("bare") / "model", eos_token_id=None, bos_token_id=None)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (None, None)
    tokenizer.save_pretrained(folder)
    return HFLM(pretrained=str(folder), device="cpu")


def ask(lm: HFLM, request_type: str, *arguments: Any) -> Any:
    return getattr(lm, request_type)([Instance(request_type, {}, arguments, 0)])[0]


def test_lm_eval_decodes_a_token_that_does_not_exist(bare: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match="None"):
        HFLM.tok_decode.__wrapped__(bare, None)
    monkeypatch.setattr(HFLM, "prefix_token_id", property(HFLM.prefix_token_id.fget.__wrapped__))
    monkeypatch.setattr(HFLM, "tok_encode", HFLM.tok_encode.__wrapped__)
    with pytest.raises(TypeError, match="None"):
        ask(bare, "loglikelihood", "the", " theorem")


def test_a_tokenizer_without_bos_and_eos_serves_the_tasks_of_lm_eval(bare: HFLM) -> None:
    context, target = (bare.tokenizer.encode(text) for text in ("the", " theorem"))
    with torch.no_grad():
        log_p = bare.model(torch.tensor([context + target])).logits[0].double().log_softmax(-1)
    expected = sum(float(log_p[len(context) - 1 + k, token]) for k, token in enumerate(target))
    assert ask(bare, "loglikelihood", "the", " theorem")[0] == pytest.approx(expected, rel=1e-4)
    answer = ask(bare, "generate_until", "the", {"until": [], "max_gen_toks": 5})
    with torch.no_grad():
        tokens = bare.model.generate(torch.tensor([context]), max_new_tokens=5, do_sample=False)[0, len(context) :]
    assert answer == bare.tokenizer.decode(tokens, skip_special_tokens=True)
    assert bare.tok_encode("the", add_special_tokens=False) == bare.tok_encode("the") == context


def test_an_empty_context_needs_a_token(bare: HFLM, monkeypatch: pytest.MonkeyPatch) -> None:
    for request in (("loglikelihood", "", "theorem"), ("loglikelihood_rolling", "theorem")):
        with user_error("setting", "prefix_token_id", field="prefix_token_id"):
            ask(bare, *request)
    monkeypatch.setattr(bare, "custom_prefix_token_id", 1)
    assert ask(bare, "loglikelihood_rolling", "theorem") < 0


def test_a_checkpoint_without_special_tokens_is_evaluated(bare: HFLM, corpus: Path) -> None:
    assert values(run(bare, [requests.PERPLEXITY], settings(corpus)), requests.PERPLEXITY)["ppl@16"] > 1


# ---- installation


def test_patches_are_installed_once_and_not_by_an_import() -> None:
    program = """
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
before = HFLM.generate_until
import longshort.lmeval.evaluate, longshort.lmeval.tasks, longshort.longbench.tasks
from longshort.lmeval.compat import install
assert HFLM.generate_until is before and not hasattr(LM, "longshort_windows")
install()
once = HFLM.generate_until
install()
assert HFLM.generate_until is once is not before and hasattr(LM, "longshort_windows")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- what lies next to an adapter


def test_lm_eval_does_not_load_what_lies_next_to_an_adapter(llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    saved = {name: value.detach() + 1 for name, value in model.named_parameters() if "embed" in name or "norm" in name}
    get_peft_model(model, LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    torch.save(saved, tmp_path / "trainable_params.bin")
    lm = HFLM(pretrained=str(llama), peft=str(tmp_path), device="cpu")
    own = lm.model.get_input_embeddings().weight

    def seen(evaluate: Callable[..., Any]) -> bool:
        """Whether the weights are in the model when a task's first request could come."""
        evaluate(lm, {"tasks": {}})
        return torch.equal(own, saved["model.embed_tokens.weight"])

    assert not seen(evaluator.evaluate.__wrapped__)
    assert seen(evaluator.evaluate)


# ---- per-token values


class Silent(LongShortTask):
    """A task that was not asked for per-token values."""

    def __init__(self) -> None:
        pass

    def construct_requests(self, doc: Any, ctx: str, **_: Any) -> Any:
        raise NotImplementedError

    def process_results(self, doc: Any, results: Any) -> Any:
        raise NotImplementedError


class OneDocument(Silent):
    """A task that has measured windows of a document."""

    def token_values(self) -> TaskValues:
        document = Document("d", "the thin theorem")
        tokens = tiny_tokenizer()(document.text)["input_ids"]
        lengths = (8, len(tokens) - 1)
        windows = {0: random_windows(tokens, lengths, num_targets=2)}
        run = EvalSettings(lengths=lengths, save_tokens=True)
        return TaskValues(requests.PERPLEXITY, run, {}, {}, None, {0: document}, windows)


def test_lm_eval_does_not_collect_token_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def stub(lm: Any, task_dict: Any, **options: Any) -> Any:
        return options.get("results", {"results": {}})

    monkeypatch.setattr(evaluator, "evaluate", stub)
    compat._collect_tokens()
    lm, others = Model(tiny_tokenizer()), {"other": Silent(), "of lm-eval": object()}
    tasks = {"tasks": {"a": OneDocument()} | others, "groups": {}}
    assert RECORD not in stub(lm=lm, task_dict=tasks)
    found = evaluator.evaluate(lm=lm, task_dict=tasks)
    assert found[RECORD].rows > 8
    assert evaluator.evaluate(lm, tasks)[RECORD] == evaluator.evaluate(lm, tasks["tasks"])[RECORD] == found[RECORD]
    assert RECORD not in evaluator.evaluate(lm=lm, task_dict={"tasks": others})
    assert evaluator.evaluate(lm=lm, task_dict=tasks, results=None) is None  # on other than the first process


def saved(output: Path | None, save: Callable[..., None], tokens: TokenFile | None, **samples: Any) -> None:
    tracker = EvaluationTracker(output_path=str(output) if output else None)
    tracker.general_config_tracker.log_experiment_args("hf", {"pretrained": "a/model"}, None, None, False)
    results = {"results": {"t": {"m,none": 1.0}}, "configs": {"t": {}}}
    save(tracker, results | ({RECORD: tokens} if tokens else {}), samples or None)


def test_lm_eval_does_not_write_token_files(tmp_path: Path) -> None:
    save, tokens = EvaluationTracker.save_results_aggregated, TokenFile(b"content", 7)
    saved(tmp_path / "before", save.__wrapped__, tokens)
    (file,) = (tmp_path / "before").rglob("*.*")
    assert isinstance(json.loads(file.read_text())[RECORD], str)

    for output in (tmp_path / "folder", tmp_path / "other" / "name.json"):
        saved(output, save, tokens)
        (results,) = (tmp_path / output.relative_to(tmp_path).parts[0]).rglob("*.json")
        file = token_file_of(results)
        assert json.loads(results.read_text())[RECORD] == tokens.record(file.name)
        assert file.read_bytes() == b"content"
        assert file.stem.partition("_")[2] == results.stem.partition("_")[2]  # lm-eval's time
        assert json.loads(results.read_text())["results"] == {"t": {"m,none": 1.0}}

    saved(tmp_path / "without", save, None)
    (results,) = (tmp_path / "without").rglob("*.*")
    assert RECORD not in json.loads(results.read_text())


def test_lm_eval_without_output_path_loses_token_values_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    saved(None, EvaluationTracker.save_results_aggregated, TokenFile(b"content", 7))
    assert_one(caplog.messages, "save_tokens", "--output_path")
    caplog.clear()
    saved(None, EvaluationTracker.save_results_aggregated, None)
    assert not caplog.messages


def test_token_values_that_lm_eval_cannot_write_leave_results_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longshort.results.tokens.write_atomically", no_space)
    row = {"arguments": [], "resps": [], "filtered_resps": [], "target": "", "doc_id": 0}
    row |= dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "x")
    with user_error("unwritable", "No space left on device"):
        saved(tmp_path, EvaluationTracker.save_results_aggregated, TokenFile(b"content", 7), t=[row])
    names = sorted(file.name.partition("_")[0] for file in tmp_path.rglob("*.json*"))
    assert names == ["results", "samples"]
    (results,) = tmp_path.rglob("results_*.json")
    assert RECORD not in json.loads(results.read_text())


def no_space(path: Path, content: bytes) -> None:
    raise UserError(f"Cannot write {path}: No space left on device.", "unwritable")


def test_lm_eval_cannot_evaluate_a_task_without_requests(
    llama: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else tasks that a glob matches without their settings could stay in the run."""
    metadata = {"corpus": str(corpus), "lengths": [16], "num_docs": 1}
    assert "longshort_perplexity" in run(llama, ["longshort_longppl", "longshort_perplexity"], metadata)["results"]
    monkeypatch.setattr(LongPPLTask, "cannot_run", None)
    with pytest.raises((IndexError, ValueError)):
        run(llama, ["longshort_longppl", "longshort_perplexity"], metadata)
