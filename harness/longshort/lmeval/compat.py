"""What lm-eval does around an evaluation, without its noise and its idle seconds."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib.metadata import distributions
from types import ModuleType
from typing import Any

import tqdm
from lm_eval import evaluator
from torch.utils import collect_env


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without a line and a bar for each bootstrapped standard error, and git's complaint outside a repository.

    What lm-eval records of the environment is collected once per process: it starts half a dozen programs.
    """
    # That metrics differ in their number of documents is told by us, by reason, and kept in the results.
    logging.getLogger("lm_eval.evaluator_utils").setLevel(logging.ERROR)
    with (
        _replaced(tqdm, tqdm=partial(tqdm.tqdm, disable=True)),  # seen by those that import it late
        _replaced(evaluator, get_git_commit_hash=_git_commit),
        _replaced(collect_env, get_pretty_env_info=environment),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        yield


_collect: Callable[[], str] = collect_env.get_pretty_env_info


@cache
def environment() -> str:
    """The text of torch's `get_pretty_env_info`, the list of packages read without a process of pip."""
    with _replaced(collect_env, get_pip_packages=_packages):
        return _collect()


def _packages(_run: Any, patterns: Any = None) -> tuple[str, str]:
    """As torch's `get_pip_packages`: the lines of ``pip list --format=freeze`` that it deems relevant."""
    found: dict[str, str] = {}
    for distribution in distributions():
        metadata = distribution.metadata  # read from its file at every access
        name = metadata["Name"]
        found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), f"{name}=={metadata['Version']}")
    if patterns is None:
        kinds = ("PIP", "COMMON", "NVIDIA", "ONEAPI")
        patterns = [pattern for kind in kinds for pattern in getattr(collect_env, f"{kind}_PATTERNS")]
    return "pip3", "\n".join(line for _, line in sorted(found.items()) if any(name in line for name in patterns))


def _git_commit() -> str | None:
    """As lm-eval's: what git says of the working directory."""
    try:
        done = subprocess.run(["git", "describe", "--always"], capture_output=True, text=True)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None


@contextlib.contextmanager
def _replaced(module: ModuleType, **functions: Any) -> Iterator[None]:
    """A module's functions by others, for a while; what another version does not have stays away."""
    before = {name: getattr(module, name) for name in functions if hasattr(module, name)}
    for name in before:
        setattr(module, name, functions[name])
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(module, name, function)
