"""For all tests: one thread per worker, since the workers share the cores; and no hub."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, also in subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/slow, so that the option is known wherever pytest starts."""
    parser.addoption("--tables", metavar="FOLDER", help="write the tables of the campaigns below this folder")
