"""For all tests: one thread per worker, as they share the cores; no hub; signals that are not ignored; a browser."""

import os
import signal

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, also in subprocesses
os.environ["HF_HUB_OFFLINE"] = "1"

import hypothesis
import pytest

from tests.browser import BROWSER

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


@pytest.fixture(scope="module")
def browser():
    """Chromium, or a skipped test."""
    if BROWSER is None:
        pytest.skip("no Chromium installed: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install 'longshort[dev]'")
    with sync_api.sync_playwright() as playwright:
        # GitHub's and most containers' kernels refuse the sandbox; the page is ours.
        instance = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield instance
        instance.close()


@pytest.fixture
def open_page(browser, address):
    """Opens the page at the module's `address`; whatever goes wrong in any page fails the test at its end."""
    troubles, contexts = [], []

    def open_it(where=address, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or troubles.append(request.url))
        page.goto(where)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert troubles == []
