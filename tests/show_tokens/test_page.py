"""`longshort show-tokens`: what the page holds, what it shows first, and bad input."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from longshort.cli import app
from longshort.show_tokens.page import write_page
from longshort.show_tokens.values import VALUES
from tests.errors import assert_facts, user_error
from tests.token_files import rows_of_document, write_token_file

LENGTHS = (8, 16, 32)
EVIL = ["<script>alert(1)</script>", "</script>", "<!--", "&amp;", "\"'", "\u2028", "\u202e", "\x00", "", "\n", "]]>"]
EVIL_NAME = "<script>alert(2)</script> & \"quotes\" 'x' \u2028\n</script>"
TEXTS = [*EVIL, *(f" w{index}" for index in range(32 - len(EVIL)))]
NAMES = (EVIL_NAME, "second", "1", "second")
ROWS = [row for index, name in enumerate(NAMES) for row in rows_of_document(index, TEXTS, LENGTHS, name=name)]


class Page(HTMLParser):
    """Its elements with their attributes, its text, and its data."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(file.read_text("utf-8"))
        self.data: dict[str, Any] = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.elements and self.elements[-1][0] == "script" and data.strip() else self.texts).append(
            data
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_token_file(tmp_path / "tokens.parquet", ROWS)


def numbers(packed: str, kind: str) -> list[float]:
    return np.frombuffer(base64.b64decode(packed), kind).tolist()


def test_every_number_is_embedded(file: Path, tmp_path: Path) -> None:
    size = write_page(file, tmp_path / "page.html", documents=["0", "1"])
    assert size == (tmp_path / "page.html").stat().st_size
    data = Page(tmp_path / "page.html").data
    assert [one["index"] for one in data["documents"]] == [0, 2]  # the name "1" comes before the index 1
    for document in data["documents"]:
        assert document["text"] == TEXTS
        assert numbers(document["position"], "<i4") == list(range(1, 33))
        for one in document["lengths"]:
            own = {
                row["position"]: row
                for row in ROWS
                if (row["document"], row["length"]) == (document["index"], one["length"])
            }
            flags = numbers(one["flags"], "u1")
            for name in ("nll", "entropy", "jeffreys"):
                for position, number in enumerate(numbers(one["values"][name], "<f2"), 1):
                    value = own.get(position, {}).get(name)
                    assert np.isnan(number) if value is None else number == pytest.approx(value, rel=5e-4)
            for position, flag in enumerate(flags, 1):
                row = own.get(position)
                bits = [row["is_top"], row["in_range"], row["fixed_target"]] if row else [False] * 3
                assert flag == (row is not None) + 2 * bits[0] + 4 * bits[1] + 8 * bits[2]
            starts = dict(one["start"])
            first = min(own)
            assert starts[first - 1] == own[first]["window_start"]


def test_text_and_names_are_text(file: Path, tmp_path: Path) -> None:
    write_page(file, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert page.data["documents"][0]["text"] == TEXTS
    assert page.data["documents"][0]["name"] == EVIL_NAME
    renamed = file.with_name("<b>&'\".parquet")
    file.rename(renamed)
    write_page(renamed, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert "b" not in [tag for tag, _ in page.elements]
    assert any(renamed.name in text for text in page.texts)


def test_nothing_is_fetched(file: Path, tmp_path: Path) -> None:
    write_page(file, tmp_path / "page.html")
    page = Page(tmp_path / "page.html")
    assert not [attributes for _, attributes in page.elements if {"src", "srcset", "data"} & attributes.keys()]
    assert {attributes["href"][0] for _, attributes in page.elements if attributes.get("href")} == {"#"}
    (policy,) = [
        attributes["content"]
        for _, attributes in page.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    ("options", "documents", "value", "length"),
    [
        ([], [0], "nll", 32),
        (["--value", "gain", "--length", "16"], [0], "gain", 16),
        (["--document", "3", "--document", "1", "--document", "3"], [3, 2], "nll", 32),
        (["--document", EVIL_NAME], [0], "nll", 32),
    ],
)
def test_options_choose_what_is_shown(
    file: Path, options: list[str], documents: list[int], value: str, length: int
) -> None:
    done = CliRunner().invoke(app, ["show-tokens", str(file), *options])
    assert done.exit_code == 0, done.output
    page = file.with_suffix(".html")
    assert_facts(done.output.rstrip("\n"), page.name, "MB")
    data = Page(page).data
    assert [one["index"] for one in data["documents"]] == documents
    assert data["start"] == {"value": value, "length": length}
    assert list(data["values"]) == list(VALUES)


def test_unknown_choices_name_the_known_ones_and_lose_nothing(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    with user_error("usage", "'loss'", *VALUES, field="value"):
        write_page(file, page, value="loss")
    with user_error("usage", 64, *LENGTHS, field="length"):
        write_page(file, page, length=64)
    with user_error("usage", "'third\\n'", "1 'second'", "3 'second'", field="document"):
        write_page(file, page, documents=["0", "third\n"])
    with user_error("usage", "'4'", "0", "3", field="document"):
        write_page(file, page, documents=["4"])
    with user_error("usage", "'second'", "1, 3", field="document"):  # two have that name
        write_page(file, page, documents=["second"])
    assert page.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "tokens.parquet"]


def test_many_documents_are_not_all_listed(tmp_path: Path) -> None:
    rows = [row for index in range(40) for row in rows_of_document(index, TEXTS, (4, 8))]
    file = write_token_file(tmp_path / "tokens.parquet", rows)
    with user_error("usage", "'x'", "'document 7'", "32 more", field="document"):
        write_page(file, tmp_path / "page.html", documents=["x"])


def test_the_token_file_is_not_replaced(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    (tmp_path / "link.html").symlink_to(file)
    for output in (file, tmp_path / "link.html"):
        with user_error("usage", file, field="output"):
            write_page(file, output)
    misnamed = file.rename(tmp_path / "tokens.html")
    done = CliRunner().invoke(app, ["show-tokens", str(misnamed)])
    assert done.exception is not None
    assert misnamed.read_bytes() == content


@pytest.mark.parametrize("size", [0, 3, 100, -1, -8])
def test_a_file_that_was_cut_off(file: Path, tmp_path: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with user_error("data", file):
        write_page(file, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_file_without_a_token(tmp_path: Path) -> None:
    file = write_token_file(tmp_path / "tokens.parquet", [])
    with user_error("data", file):
        write_page(file, tmp_path / "page.html")


def test_the_page_is_written_whole_or_not_at_all(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "page.html").write_text("before")

    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", fail)
    with user_error("unwritable", tmp_path / "page.html", os.strerror(28)):
        write_page(file, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "tokens.parquet"]


def test_a_document_of_32k_tokens_at_five_lengths_takes_a_few_megabytes(tmp_path: Path) -> None:
    lengths = (2048, 4096, 8192, 16384, 32768)
    rows = rows_of_document(0, [f" w{index}" for index in range(32768)], lengths)
    file = write_token_file(tmp_path / "tokens.parquet", rows)
    assert write_page(file, tmp_path / "page.html") < 4e6


def test_values_beyond_half_precision_stay_numbers(tmp_path: Path) -> None:
    rows = [row | {"nll": 1e6, "jeffreys": 1e-9} for row in rows_of_document(0, TEXTS, LENGTHS)]
    write_page(write_token_file(tmp_path / "tokens.parquet", rows), tmp_path / "page.html")
    longest = Page(tmp_path / "page.html").data["documents"][0]["lengths"][-1]["values"]
    assert set(numbers(longest["nll"], "<f2")) == {65504.0}
    assert np.isfinite(numbers(longest["jeffreys"], "<f2")).all()


def test_no_torch_is_needed(file: Path, tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from longshort.show_tokens.page import write_page; "
    code += "write_page(Path(sys.argv[1]), Path(sys.argv[2])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, file, tmp_path / "page.html"]).returncode == 0
