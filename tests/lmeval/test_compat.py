"""What lm-eval records of the environment, against torch's own collection of it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
import torch.utils.collect_env as collect_env
import tqdm
from lm_eval import evaluator

from longshort.lmeval.compat import environment, quiet


@pytest.fixture
def fresh() -> Iterator[None]:
    environment.cache_clear()
    yield
    environment.cache_clear()


def without_clock_rate(text: str) -> list[str]:
    """Lines but for the processor's present frequency."""
    return [line for line in text.splitlines() if "MHz" not in line and "scaling" not in line]


def test_the_environment_is_told_as_torch_tells_it(fresh: None) -> None:
    assert "[pip3] torch==" in environment()
    assert without_clock_rate(environment()) == without_clock_rate(collect_env.get_pretty_env_info())


def test_it_is_collected_once_and_without_pip(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    popen = subprocess.Popen

    def counting(command: object, *arguments: object, **options: object) -> subprocess.Popen[str]:
        started.append(command)
        return popen(command, *arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", counting)
    with quiet():
        first = collect_env.get_pretty_env_info()
        count = len(started)
        assert collect_env.get_pretty_env_info() == first
    assert 0 < count == len(started)
    assert not any("pip" in str(command) for command in started)


def test_everything_is_as_it_was_afterwards() -> None:
    before = tqdm.tqdm, evaluator.get_git_commit_hash, collect_env.get_pretty_env_info, collect_env.get_pip_packages
    with quiet():
        assert tqdm.tqdm is not before[0]
    environment()
    assert before == (
        tqdm.tqdm,
        evaluator.get_git_commit_hash,
        collect_env.get_pretty_env_info,
        collect_env.get_pip_packages,
    )
