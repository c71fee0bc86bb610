"""Every patch of another library that an evaluation needs.

`install` changes lm-eval for the rest of the process. longshort's tasks call it when they are constructed, so that
they also work under the stock ``lm_eval`` command. `quiet` and `no_random_weights` change libraries only while they
are open. Each patch names the versions it was checked with and the behaviour it mends; for each, a test in
``tests/lmeval/test_compat.py`` fails once the library no longer behaves so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import cache, partial, wraps
from importlib.metadata import distributions
from inspect import signature
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lm_eval.api.metrics
import lm_eval.evaluator_utils
import lm_eval.loggers.evaluation_tracker
import tqdm
from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from torch.utils import collect_env
from transformers import PreTrainedModel

from longshort.errors import UserError, one_line_for_user_errors
from longshort.lmeval import longppl, requests, retrieval_requests
from longshort.lmeval.adapters import has_trained_in_full
from longshort.lmeval.base import LongShortTask, is_missing_setting
from longshort.lmeval.bootstrap import perplexity, perplexity_stderr
from longshort.lmeval.longppl_pooling import pooled_perplexity, pooled_perplexity_stderr
from longshort.lmeval.model_checks import require_weights_as_trained
from longshort.lmeval.output import date_in_names
from longshort.lmeval.parallel import SharedGeneration, share
from longshort.lmeval.token_files import token_file
from longshort.results.tokens import RECORD, write_tokens

logger = logging.getLogger(__name__)

Statistic = Callable[[Sequence[Any]], float]


@cache
def install() -> None:
    """Let lm-eval run longshort's tasks; once per process."""
    _add_request_type()
    _add_stderr_of_perplexity()
    _let_processes_lack_metrics()
    _share_generation()
    _let_tokenizers_lack_special_tokens()
    _skip_tasks()
    _collect_tokens()
    _save_tokens()
    _complete_adapters()
    one_line_for_user_errors()  # the stock lm_eval command lets exceptions through to the interpreter


def _add_request_type() -> None:
    """Let every lm-eval model answer the request types of longshort, or say why it cannot.

    Versions: lm-eval 0.4.13.
    Why: lm-eval calls the method of a model that is named like the request type; it has no registry of request types.
    """
    setattr(LM, requests.REQUEST, requests.answer)
    setattr(LM, longppl.LONGPPL, longppl.answer)
    setattr(LM, retrieval_requests.RETRIEVAL, retrieval_requests.answer)


def _add_stderr_of_perplexity() -> None:
    """Give `bootstrap.perplexity` and `pooled_perplexity` their standard errors; lm-eval computes all others as before.

    Versions: lm-eval 0.4.13.
    Why: the standard error is chosen from a fixed list of aggregating functions. Its own bootstrap of a perplexity
    starts a pool of processes for each metric and takes seconds.
    """
    of_lm_eval = lm_eval.api.metrics.stderr_for_metric

    @wraps(of_lm_eval)
    def stderr_for_metric(metric: Statistic, bootstrap_iters: int) -> Statistic | None:
        if metric not in (perplexity, pooled_perplexity):
            return of_lm_eval(metric, bootstrap_iters)  # type: ignore[no-any-return]  # lm-eval has no types here
        if bootstrap_iters < 2:
            return None
        if metric is pooled_perplexity:
            return pooled_perplexity_stderr
        return lambda values: perplexity_stderr(values, bootstrap_iters)

    for module in (lm_eval.api.metrics, lm_eval.evaluator_utils):  # where it is defined, and where it is imported
        module.stderr_for_metric = stderr_for_metric


def _let_processes_lack_metrics() -> None:
    """Aggregate a metric that only some of the data-parallel processes have.

    Versions: lm-eval 0.4.13.
    Why: `evaluator.evaluate` raises a KeyError where another process lacks a metric that the first process has.
    """
    original = HFLM.gather_object

    @wraps(original)
    def gather_object(self: Any, obj: Any, dst: int = 0) -> Any:
        gathered = original(self, obj, dst)
        for by_task in gathered or ():
            for task, metrics in by_task.items():
                if isinstance(metrics, dict):
                    by_task[task] = defaultdict(list, metrics)
        return gathered

    HFLM.gather_object = gather_object


def _share_generation() -> None:
    """Let the ``hf`` backend share `SharedGeneration` requests among processes, each with its own token settings.

    Versions: lm-eval 0.4.13.
    Why: `generate_until` answers every request on every process, and passes each request's settings on without asking
    the tokenizer: a *token* that ends an answer cannot be named, because `until` compares text.
    """
    original = HFLM.generate_until

    @wraps(original)
    def generate_until(self: Any, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        shared = [index for index, request in enumerate(requests) if isinstance(request, SharedGeneration)]
        others = [index for index, request in enumerate(requests) if not isinstance(request, SharedGeneration)]
        answers: dict[int, str] = {}
        if shared:
            mine = shared[self.rank :: self.world_size]  # empty where there are more processes than requests
            batch = [requests[index].for_model(self) for index in mine]
            generated = original(self, batch, disable_tqdm=disable_tqdm) if batch else []
            answers |= share(self, dict(zip(mine, generated, strict=True)))
        if others:
            generated = original(self, [requests[index] for index in others], disable_tqdm=disable_tqdm)
            answers |= zip(others, generated, strict=True)
        return [answers[index] for index in range(len(requests))]

    HFLM.generate_until = generate_until


def _let_tokenizers_lack_special_tokens() -> None:
    """Let the ``hf`` backend use a tokenizer with neither BOS nor EOS, as far as a task does not need one.

    Versions: lm-eval 0.4.13.
    Why: `tok_encode` and `generate_until` decode the id of a token that does not exist, which is None. Only an empty
    context needs one, in its place.
    """
    encode, decode, prefix_token_id = HFLM.tok_encode, HFLM.tok_decode, HFLM.prefix_token_id.fget

    @wraps(encode)
    def tok_encode(self: Any, string: str, add_special_tokens: bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if add_special_tokens is None and prefix_token_id(self) is None:  # no BOS that the string may begin with
            add_special_tokens = self.add_bos_token is not False
        return encode(self, string, add_special_tokens, *args, **kwargs)

    @wraps(decode)
    def tok_decode(self: Any, tokens: Any, skip_special_tokens: bool = True) -> Any:
        return None if tokens is None else decode(self, tokens, skip_special_tokens=skip_special_tokens)

    @wraps(prefix_token_id)
    def required_prefix(self: Any) -> int:
        if (token := prefix_token_id(self)) is None:
            raise UserError(
                "the tokenizer has neither BOS nor EOS, one of which this task puts before an empty context. Set the "
                "model argument prefix_token_id=… to the id of the token that begins a text.",
                "setting",
                "prefix_token_id",
            )
        return int(token)

    HFLM.tok_encode, HFLM.tok_decode, HFLM.prefix_token_id = tok_encode, tok_decode, property(required_prefix)


def _complete_adapters() -> None:
    """Before any request, give a model the weights next to its adapter that lm-eval has not loaded, or refuse it.

    Versions: lm-eval 0.4.13.
    Why: `HFLM` loads an adapter by PEFT alone, and the model exists before longshort's tasks do. At their own first
    request, other tasks of the same run may have been answered.
    """
    original = evaluator.evaluate

    @wraps(original)
    def evaluate(*arguments: Any, **options: Any) -> Any:
        lm = options["lm"] if "lm" in options else arguments[0]
        if isinstance(lm, HFLM) and lm.peft and has_trained_in_full(lm.peft, lm.revision):
            require_weights_as_trained(lm)
        return original(*arguments, **options)

    evaluator.evaluate = evaluate


def _skip_tasks() -> None:
    """Skip longshort's tasks that cannot run, such as one whose setting is missing, if there are other tasks.

    Versions: lm-eval 0.4.13.
    Why: a glob such as ``longshort_*`` matches every task, and lm-eval has no way to skip one: an exception when it is
    constructed ends the run, and `evaluator.evaluate` needs a request of each.
    """
    original = evaluator.evaluate

    @wraps(original)
    def evaluate(*arguments: Any, **options: Any) -> Any:
        given = signature(original).bind(*arguments, **options)
        task_dict = given.arguments["task_dict"]
        tasks = task_dict.get("tasks", task_dict)
        ours = {name: task for name, task in tasks.items() if isinstance(task, LongShortTask)}
        problems = {name: problem for name, task in ours.items() if (problem := task.cannot_run)}
        for problem in problems.values():
            if len(problems) == len(tasks) or not is_missing_setting(problem):  # this command cannot end with an error
                raise problem
        for name, problem in problems.items():
            logger.warning("%s was skipped: %s", name, problem)
        kept = {name: task for name, task in tasks.items() if name not in problems}
        given.arguments["task_dict"] = task_dict | {"tasks": kept} if "tasks" in task_dict else kept
        return original(*given.args, **given.kwargs)

    evaluator.evaluate = evaluate


def _collect_tokens() -> None:
    """Add the token file to an evaluation's results, if a task has the setting `save_tokens`.

    Versions: lm-eval 0.4.13.
    Why: tasks do not know the model and its tokenizer, and `evaluator.evaluate` returns only metrics and samples.
    """
    original = evaluator.evaluate

    @wraps(original)
    def evaluate(*arguments: Any, **options: Any) -> Any:
        results = original(*arguments, **options)
        if results is not None:  # on the first process
            given = signature(original).bind(*arguments, **options).arguments
            tasks = given["task_dict"].get("tasks", given["task_dict"]).values()
            found = [task.token_values() for task in tasks if isinstance(task, LongShortTask)]
            if values := [of_task for of_task in found if of_task]:
                results[RECORD] = token_file(given["lm"], values)
        return results

    evaluator.evaluate = evaluate


def _save_tokens() -> None:
    """Let lm-eval's tracker also write the token file, and record its name and hash in the results.

    Versions: lm-eval 0.4.13.
    Why: the tracker writes results and samples only, and would serialize the token file into the results as text.
    """
    original = EvaluationTracker.save_results_aggregated

    @wraps(original)
    def save_results_aggregated(self: Any, results: dict[str, Any], samples: Any = None) -> None:
        tokens, path = results.pop(RECORD, None), self.output_path and Path(self.output_path)
        if tokens and not path:
            logger.warning("save_tokens has no effect without --output_path: the per-token values are not saved.")
        if not tokens or not path:
            return original(self, results, samples)  # type: ignore[no-any-return]  # lm-eval has no types here
        date = datetime.now()
        folder = path.parent if path.suffix == ".json" else path / str(self.general_config_tracker.model_name_sanitized)
        record, problem = write_tokens(tokens, folder / f"tokens_{date_in_names(date)}.parquet")
        with _replaced(lm_eval.loggers.evaluation_tracker, datetime=SimpleNamespace(now=lambda: date)):
            original(self, results | ({RECORD: record} if record else {}), samples)
        if problem:
            for task, rows in (samples or {}).items():  # lm-eval's command line would write them next
                self.save_results_samples(task, rows)
            raise problem

    EvaluationTracker.save_results_aggregated = save_results_aggregated


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Evaluate or load without lm-eval's noise, and collect what it records of the environment once per process.

    Versions: lm-eval 0.4.13, torch 2.13, tqdm 4.70.
    Why: lm-eval prints a line and a bar for each standard error by bootstrap, warns that metrics have different
    numbers of documents (longshort reports that itself, by reason), lets git complain outside a repository, and for
    every evaluation starts pip and half a dozen other programs through torch's `get_pretty_env_info`.
    """
    logging.getLogger("lm_eval.evaluator_utils").setLevel(logging.ERROR)
    with (
        _replaced(tqdm, tqdm=partial(tqdm.tqdm, disable=True)),  # seen by functions that import it when called
        _replaced(evaluator, get_git_commit_hash=_git_commit),
        _replaced(collect_env, get_pretty_env_info=environment),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


_collect: Callable[[], str] = collect_env.get_pretty_env_info


@cache
def environment() -> str:
    """Return the text of torch's `get_pretty_env_info`, with the list of packages read without starting pip."""
    with _replaced(collect_env, get_pip_packages=_packages):
        return _collect()


def _packages(_run: Any, patterns: Any = None) -> tuple[str, str]:
    """As torch's `get_pip_packages`: the relevant lines of ``pip list --format=freeze``."""
    found: dict[str, str] = {}
    for distribution in distributions():
        metadata = distribution.metadata  # read from its file at every access
        name = metadata["Name"]
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), f"{name}=={metadata['Version']}")
    if patterns is None:
        groups = ("PIP", "COMMON", "NVIDIA", "ONEAPI")
        patterns = [pattern for group in groups for pattern in getattr(collect_env, f"{group}_PATTERNS")]
    return "pip3", "\n".join(line for _, line in sorted(found.items()) if any(name in line for name in patterns))


def _git_commit() -> str | None:
    """As lm-eval's function: what git reports of the working directory."""
    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def no_random_weights() -> Iterator[None]:
    """Refuse every checkpoint or adapter that is loaded meanwhile and lacks weights.

    Versions: transformers 5.23, PEFT 0.21.
    Why: transformers initializes missing weights at random, PEFT leaves out missing adapter weights, and both only
    log or warn. The missing names come from transformers' ``output_loading_info``: TRANSFORMERS_VERBOSITY may silence
    the log, and weights that several layers lack share a line in it.

    Raises:
        UserError: weights are missing ("broken"); the first one is named.
    """
    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], *arguments: Any, **options: Any) -> Any:
        is_asked_for = options.pop("output_loading_info", False)
        loaded = original.__func__(cls, *arguments, output_loading_info=True, **options)
        model, info = loaded
        if missing := info["missing_keys"]:
            name = arguments[0] if arguments else options.get("pretrained_model_name_or_path")
            raise UserError(
                f"checkpoint '{name}' lacks {len(missing)} of its weights (the first: {min(missing)}), which would be "
                "random. Download or save it again.",
                "broken",
            )
        return loaded if is_asked_for else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", ".*missing adapter keys")  # PEFT's text: it has no class for it
            yield
    except UserWarning as warning:
        cause = " ".join(str(warning).split())[:300]
        raise UserError(f"an adapter lacks some of its weights: {cause} Save it again.", "broken") from warning
    finally:
        PreTrainedModel.from_pretrained = original


@contextlib.contextmanager
def _replaced(module: ModuleType, **functions: Any) -> Iterator[None]:
    """Replace functions of a module while open; those that this version of it does not have are skipped."""
    before = {name: getattr(module, name) for name in functions if hasattr(module, name)}
    for name in before:
        setattr(module, name, functions[name])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
