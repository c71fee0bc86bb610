"""For all tests: one thread per worker, since the workers share the cores; and no hub."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, also in subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

# Nothing here measures time: on a busy machine the first examples of a test can take seconds.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/slow, so that the option is known wherever pytest starts."""
    parser.addoption("--tables", metavar="FOLDER", help="write the tables of the campaigns below this folder")
