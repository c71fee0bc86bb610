"""The paper's numbers are in the report as facts of the paper, and in nothing that was measured."""

import json
import re

from longshort.analysis.report import write_report
from tests.analysis.analyses import usual
from tests.analysis.test_report import Page, words

NUMBERS = {  # by heading; second-hand, see the sources in the report
    "BABILong": "α 4k 8k 16k 0 48.2 42.4 37.9 0.1 49.1 44.4 40.1",
    "What else was varied": (
        "varied LongBench-E perplexity α = 0.3 27.1 – α = 1.0 19.9 12.92 l_extra up to half of l_train 25.8 – "
        "l_extra up to l_train (its set-up is unclear) 19.1 –"
    ),
}


def test_the_further_numbers_are_reported_and_not_mixed_with_measurements(tmp_path):
    made = usual()
    page = Page(write_report(made, tmp_path / "report.html", ()).read_text("utf-8"))
    text = words(page.texts["paper"])
    for heading, expected in NUMBERS.items():
        about = text[text.index(heading) :]
        assert re.match(rf"{heading}[^:]*: reported by Du et al\., ICML 2025, not measured here", about)
        assert expected in about
    embedded = json.dumps(page.data)
    for number in re.findall(r"\d+\.\d+", " ".join(NUMBERS.values())):
        if float(number) > 1:  # 0.1 is a value of α
            assert not re.search(rf"[:,] {re.escape(number)}[,\]]", embedded)
