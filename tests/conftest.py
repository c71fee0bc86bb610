"""For all tests: one thread per worker, since the workers share the cores; no hub; and signals that are not ignored."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, also in subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

# Nothing here measures time: on a busy machine the first examples of a test can take seconds.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

# A background job of a script ignores Ctrl-C, and so would all that the tests start and interrupt. SIGHUP stays as it
# is: no test sends it, and nohup relies on it.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here and not in tests/slow, so that the option is known wherever pytest starts."""
    parser.addoption("--tables", metavar="FOLDER", help="write the tables of the campaigns below this folder")
