import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from longshort import corpora
from longshort.corpora import BYTES_PER_TOKEN, Corpus, Document, fingerprint, matching_files, open_corpus, select
from longshort.errors import UserError
from tests.errors import contains

TEXTS = ["first — ürst", "second\nline", "third \u2028 \x1f"]


def jsonl(texts, column="text"):
    # A line separator inside a text does not end the line of JSON it stands in.
    return "".join(json.dumps({"id": 1, column: text}, ensure_ascii=False) + "\n" for text in texts).encode()


def write_parquet(path, values, column="text"):
    table = pyarrow.table({"id": list(range(len(values))), column: values})
    pyarrow.parquet.write_table(table, path, row_group_size=2)


def texts_of(spec, **options):
    return [document.text for document in open_corpus(str(spec), **options)]


def error_of(spec):
    """Failure category and one-line message of reading a corpus to its end."""
    with pytest.raises(UserError) as raised:
        list(open_corpus(str(spec)))
    assert "\n" not in raised.value.message
    return raised.value.kind, raised.value.message


# ---------------------------------------------------------------- files


def write_formats(folder, texts, column="text"):
    """Write the texts in every format with rows; return the files' names."""
    rows = [{"id": 1, column: text} for text in texts]
    lines = jsonl(texts, column)
    contents = {
        "a.jsonl": lines,
        "lines.json": b"\n" + lines,
        "array.json": json.dumps(rows).encode(),
        "pretty.json": json.dumps(rows, indent=2, ensure_ascii=False).encode("utf-8-sig"),
    }
    contents |= {f"{name}.gz": gzip.compress(content) for name, content in contents.items()}
    contents |= {f"{name}.zst": zstandard.compress(content) for name, content in contents.items() if "gz" not in name}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    write_parquet(folder / "a.parquet", texts, column)
    return [*contents, "a.parquet"]


@pytest.mark.parametrize("column", corpora.TEXT_COLUMNS)
def test_all_formats_hold_the_same_documents(tmp_path, column):
    for name in write_formats(tmp_path, TEXTS, column):
        assert texts_of(tmp_path / name) == TEXTS, name


def test_any_column_of_any_format(tmp_path):
    for name in write_formats(tmp_path, TEXTS, "raw:content"):
        assert texts_of(f"{tmp_path / name}:raw:content") == TEXTS, name
        kind, message = error_of(tmp_path / name)
        assert kind == "data"
        assert contains(message, tmp_path / name, "id, raw:content", "text, content, document", "PATH:COLUMN")
        kind, message = error_of(f"{tmp_path / name}:body")
        assert kind == "data"
        assert contains(message, tmp_path / name, "id, raw:content", "body")
    (tmp_path / "b").mkdir()
    for name in ("b/1.jsonl", "b/2.jsonl"):
        (tmp_path / name).write_text('{"text": "wrong", "body": "right"}')
    assert texts_of(f"{tmp_path}/b:body") == texts_of(f"{tmp_path}/b/*.jsonl:body") == ["right"] * 2
    assert texts_of(f"{tmp_path}/b/1.jsonl:") == ["wrong"]


def test_a_path_with_colons_is_no_column(tmp_path):
    for name in ("a:text.jsonl", "a:text", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jsonl").write_text(json.dumps({"text": name, "body": "column"}))
    assert texts_of(tmp_path / "a:text") == ["a:text"]
    assert texts_of(tmp_path / "a:text:body") == ["column"]
    assert texts_of(tmp_path / "b:text") == ["b"]
    for spec in (
        "C:\\data\\a.jsonl",
        "https://example.org/a.jsonl",
        "builtin:text",
        "pg19:text",
        ":text",
        f"{tmp_path}/c:text",
    ):
        kind, message = error_of(spec)
        assert (kind, f"'{spec}'" in message) == ("not_found", True)


def test_a_text_file_has_no_columns(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    kind, message = error_of(tmp_path / "a.txt:body")
    assert kind == "setting"
    assert contains(message, tmp_path / "a.txt", "'body'")


@pytest.mark.parametrize(
    "content", ['{\n "text": "x"\n}\n', '{"text": "x"}', '[{"text": "x"}]', '\ufeff\n[\n{"text": "x"}]']
)
def test_one_document_as_json(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert list(open_corpus(str(tmp_path / "a.json"))) == [
        Document(next(iter(open_corpus(str(tmp_path / "a.json")))).name, "x")
    ]


def test_a_txt_file_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text(TEXTS[1], "utf-8")
    corpus = open_corpus(str(tmp_path / "book.txt"))
    assert list(corpus) == list(corpus) == [Document("book.txt", TEXTS[1])]
    assert (corpus.source, corpus.revision, corpus.split) == (str(tmp_path / "book.txt"), None, None)


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_text("text", "utf-8-sig")
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(["text"]))
    assert texts_of(tmp_path) == ["text", "text"]


def test_blank_lines_are_no_documents_but_count_as_lines(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + jsonl(["x"]) + b"  \r\n" + jsonl(["y"]).rstrip())
    assert [document.name for document in open_corpus(str(tmp_path / "a.jsonl"))] == [
        "a.jsonl:2",
        "a.jsonl:4",
    ]


def test_zstd_files_of_several_frames_are_read_to_the_end(tmp_path):
    content = jsonl(["one"] * 5)
    frames = [zstandard.compress(content[start : start + 7]) for start in range(0, len(content), 7)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert texts_of(tmp_path / "a.jsonl.zst") == ["one"] * 5


def test_folders_and_globs_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "below.parquet").mkdir()  # as Spark writes them
    for name in ("b.txt", "a.txt", "below.parquet/c.txt", "README.md", "x[1].txt"):
        (tmp_path / name).write_text(name)
    assert texts_of(tmp_path) == ["a.txt", "b.txt", "below.parquet/c.txt", "x[1].txt"]
    assert texts_of(tmp_path / "[ab].txt") == ["a.txt", "b.txt"]
    assert texts_of(tmp_path / "**" / "c.txt") == ["below.parquet/c.txt"]
    assert texts_of(tmp_path / "x[1].txt") == ["x[1].txt"]
    assert open_corpus(str(tmp_path)).source == f"4 files, {tmp_path}"


def test_a_null_text_is_skipped_and_counted_in_every_format(tmp_path, caplog):
    for name in write_formats(tmp_path, [None, "x", "", None, "y"]):
        caplog.clear()
        assert texts_of(tmp_path / name) == ["x", "", "y"], name
        assert len(select(open_corpus(str(tmp_path / name)), 9, 16)) == 2
        (record,) = caplog.records  # once, although it is read twice
        assert contains(record.getMessage(), tmp_path / name, 2), name


def test_only_null_texts(tmp_path, caplog):
    for name in write_formats(tmp_path, [None] * 3):
        with pytest.raises(UserError) as raised:
            select(open_corpus(str(tmp_path / name)), 9, 16)
        assert raised.value.kind == "text"
        assert contains(caplog.records[-1].getMessage(), tmp_path / name, 3)


def test_a_null_text_is_not_replaced_by_another_column(tmp_path):
    rows = [{"text": None, "content": "of another kind"}, {"text": "x", "content": "of another kind"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert texts_of(tmp_path / "a.jsonl") == texts_of(tmp_path / "a.parquet") == ["x"]


def test_what_is_not_there_or_not_known(tmp_path):
    for spec in (str(tmp_path / "missing.txt"), str(tmp_path / "*.txt"), "pg20", "", str(tmp_path), "a" * 5000):
        kind, message = error_of(spec)
        assert kind == "not_found"
        assert f"'{spec}'" in message
        assert ".jsonl.zst" in message
    (tmp_path / "book.pdf").write_text("")
    kind, message = error_of(tmp_path / "book.pdf")
    assert kind == "data"
    assert str(tmp_path / "book.pdf") in message


def test_an_existing_path_is_no_glob(tmp_path):
    for name in ("my[1].txt", "my1.txt", "x*.jsonl"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a[b]").mkdir()
    (tmp_path / "a[b]" / "c.md").write_text("")
    assert matching_files(str(tmp_path / "my[1].txt")) == [tmp_path / "my[1].txt"]
    assert texts_of(tmp_path / "my[1].txt") == ["my[1].txt"]
    assert matching_files(str(tmp_path / "my[12].txt")) == [tmp_path / "my1.txt"]
    assert matching_files(str(tmp_path / "x*.jsonl")) == [tmp_path / "x*.jsonl"]
    assert matching_files(str(tmp_path / "a[b]")) == [tmp_path / "a[b]" / "c.md"]  # whatever they hold
    assert matching_files(str(tmp_path / "*.md")) == []


def test_hidden_copies_are_no_documents(tmp_path):
    root = tmp_path / ".cache" / "texts"  # above the folder that is named, a dot does not count
    for name in (
        "book.txt",
        "below/book.txt",
        "._book.txt",
        ".ipynb_checkpoints/book-checkpoint.txt",
        "below/.git/deep/book.txt",
        "__MACOSX/book.txt",
        "__MACOSX/below/._book.txt",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x00\x05\x16\x07\xff" if "._" in name else name.encode())
    expected = ["below/book.txt", "book.txt"]
    assert texts_of(root) == texts_of(root / "**" / "*.txt") == texts_of(root / "**" / "*") == expected
    assert texts_of(root / "*.txt") == ["book.txt"]
    # What is asked for by name is read.
    assert texts_of(root / ".ipynb_checkpoints" / "*.txt") == [".ipynb_checkpoints/book-checkpoint.txt"]
    assert texts_of(root / "__MACOSX" / "*.txt") == ["__MACOSX/book.txt"]
    (root / ".only").mkdir()
    (root / ".only" / ".a.txt").write_text("hidden")
    assert texts_of(root / ".only" / ".a.txt") == ["hidden"]
    assert error_of(root / ".only")[0] == "not_found"


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("text")
    assert matching_files("~/*.txt") == [tmp_path / "a.txt"]
    assert matching_files("~nobody-of-this-name/a.txt") == []


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"text": "cut', "JSON"),
        (b"plain text", "JSON"),
        (b'{"title": "no text"}', "text"),
        (b'["text"]', "text"),
        (b'{"text": "\xff"}', "UTF-8"),
        (b"1" * 5000, "4300"),
        (b"[" * 100_000, "recursion"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, cause):
    (tmp_path / "a.jsonl").write_bytes(jsonl(["good", "good"]) + line + b"\n" + jsonl(["good"]))
    kind, message = error_of(tmp_path / "a.jsonl")
    assert kind == "data"
    assert all(fact in message for fact in (str(tmp_path / "a.jsonl"), "line 3", cause))


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    kind, message = error_of(tmp_path / "a.txt")
    assert kind == "data"
    assert all(fact in message for fact in (str(tmp_path / "a.txt"), "byte 2", "UTF-8"))


def test_zstd_files_cut_off_or_damaged(tmp_path):
    packed = zstandard.compress(jsonl([str(number) for number in range(5000)]))
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed[:-10])
    kind, message = error_of(path)
    assert (kind, str(path) in message, "incomplete" in message) == ("data", True, True)
    path.write_bytes(b"not zstd at all")
    kind, message = error_of(path)
    assert (kind, str(path) in message, "damaged" in message) == ("data", True, True)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.txt.gz"])
def test_gzip_files_cut_off_or_damaged(tmp_path, name):
    whole = gzip.compress(jsonl([str(number) for number in range(5000)]))
    path = tmp_path / name
    for damaged, fact in [
        (whole[:-10], "incomplete"),
        (b"not gzip at all", "damaged"),
        (whole[:5000] + b"\x99" * 100 + whole[5100:], "damaged"),
        (whole + b"more", "damaged"),
    ]:
        path.write_bytes(damaged)
        kind, message = error_of(path)
        assert kind == "data"
        assert contains(message, path, fact, "gzip")


def test_gzip_files_of_several_members_are_read_to_the_end(tmp_path):
    content = jsonl(["one"] * 5)
    (tmp_path / "a.jsonl.gz").write_bytes(
        b"".join(gzip.compress(content[i : i + 7]) for i in range(0, len(content), 7))
    )
    assert texts_of(tmp_path / "a.jsonl.gz") == ["one"] * 5


def test_zstd_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(["x"])))
    kind, message = error_of(tmp_path / "a.jsonl.zst")
    assert kind == "dependency"
    assert contains(message, tmp_path / "a.jsonl.zst", "zstandard")


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (b'[{"text": "a"},\n{"text": "b"', ["line 2", "JSON"]),
        (b'[{"text": "a"},\n{"title": "b"}]', ["item 2", "title"]),
        (b'[\n{"text": "\xff"}]', ["line 2", "UTF-8"]),
        (b'{"text": "a"}\n{"text": "b', ["line 2", "JSON"]),
        (b'["a"]', ["item 1"]),
        (b'"a"', ["item 1"]),
        (b"[" * 100_000, ["recursion"]),
        (b"1" * 5000, ["4300"]),
    ],
)
def test_a_bad_place_of_a_json_file_is_named(tmp_path, content, facts):
    (tmp_path / "a.json").write_bytes(content)
    kind, message = error_of(tmp_path / "a.json")
    assert kind == "data"
    assert contains(message, tmp_path / "a.json")
    assert all(fact in message for fact in facts)


def test_text_files_may_be_compressed(tmp_path):
    content = "\ufeffone\r\ntwo\n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(content))
    assert texts_of(tmp_path) == ["one\ntwo\n"] * 3


def test_lines_longer_than_a_block(tmp_path):
    texts = ["a" * 3_000_000, "b", "c" * 1_500_000]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(texts), 1))
    assert texts_of(tmp_path / "a.jsonl.gz") == texts


def test_parquet_files_cut_off_or_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["text " * 1000] * 3)
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:4] + b"\x99" * (len(whole) // 4) + whole[4 + len(whole) // 4 :]):
        path.write_bytes(damaged)
        kind, message = error_of(path)
        assert (kind, str(path) in message, "Parquet" in message) == ("data", True, True)


def test_parquet_files_without_text(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x"], "title")
    kind, message = error_of(tmp_path / "a.parquet")
    assert kind == "data"
    assert all(fact in message for fact in ("a.parquet", "id, title", "text, content, document"))
    write_parquet(tmp_path / "a.parquet", [[1, 2]])
    kind, message = error_of(tmp_path / "a.parquet")
    assert kind == "data"
    assert all(fact in message for fact in ("a.parquet", "column 'text'", "list<element: int64>"))


# ---------------------------------------------------------------- builtin


def test_the_parts_of_the_builtin_corpus_are_disjoint_and_always_the_same():
    parts = {split: list(open_corpus("builtin", split)) for split in ("train", "validation", "test")}
    names = {split: {document.name for document in part} for split, part in parts.items()}
    assert len(set().union(*names.values())) == sum(len(part) for part in parts.values())
    assert len(parts["train"]) > len(parts["test"]) > len(parts["validation"]) > 10
    assert parts["test"] == list(open_corpus("builtin", "test"))
    assert not any("test" in name.split("/")[:-1] for part in names.values() for name in part)


# ---------------------------------------------------------------- select, fingerprint


def corpus_of(texts):
    documents = [Document(str(index), text) for index, text in enumerate(texts)]
    return Corpus("spec", "memory", None, None, lambda: documents)


def obvious_select(texts, num_docs, max_length):
    """As the docstring says it: long ones first come, then the longest others, then corpus order."""
    indices = [index for index, text in enumerate(texts) if text]
    sizes = [len(text.encode()) for text in texts]
    long = [index for index in indices if sizes[index] >= BYTES_PER_TOKEN * max_length][:num_docs]
    others = sorted((index for index in indices if index not in long), key=lambda index: -sizes[index])
    return sorted(long + others[: num_docs - len(long)])


@given(
    texts=st.lists(st.text(st.sampled_from("aé𝄞"), max_size=20), max_size=30).filter(any),
    num_docs=st.integers(1, 12),
    max_length=st.integers(1, 4),
)
def test_select_agrees_with_the_obvious(texts, num_docs, max_length):
    chosen = [int(document.name) for document in select(corpus_of(texts), num_docs, max_length)]
    assert chosen == obvious_select(texts, num_docs, max_length)


def test_select_stops_reading(monkeypatch):
    def endless():
        number = 0
        while True:
            number += 1
            yield Document(str(number), "x" * (number % 7))

    corpus = Corpus("spec", "memory", None, None, endless)
    assert [document.name for document in select(corpus, 2, 0)] == ["1", "2"]
    monkeypatch.setattr(corpora, "MAX_DOCUMENTS_READ", 20)
    assert [document.name for document in select(corpus, 2, 1)] == ["6", "13"]


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_corpus(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"a\.jsonl") as raised:
        select(open_corpus(str(tmp_path / "a.jsonl")), 4, 16)
    assert raised.value.kind == "text"


@given(st.lists(st.text(max_size=3), max_size=4), st.lists(st.text(max_size=3), max_size=4))
def test_the_fingerprint_is_that_of_the_texts_and_their_boundaries(one, other):
    def digest(texts):
        return fingerprint(Document("any", text) for text in texts)

    assert (digest(one) == digest(other)) == (one == other)


def test_the_fingerprint_knows_no_names_and_bears_lone_surrogates():
    assert fingerprint([Document("a", "\ud800")]) == fingerprint([Document("b", "\ud800")])
    assert Document("a", "\ud800é").num_bytes == 5


# ---------------------------------------------------------------- hub


@pytest.mark.parametrize("spec", ["hf:", "hf:name", "hf:a/b/c", "hf:/b", "hf:a/", "hf:a/b:c:d:e:f"])
def test_a_bad_name_of_a_hub_dataset(spec):
    kind, message = error_of(spec)
    assert kind == "setting"
    assert f"'{spec}'" in message


@pytest.mark.parametrize("spec", ["pg19", "hf:some/data"])
def test_a_hub_that_cannot_be_reached(monkeypatch, spec):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port
    kind, message = error_of(spec)
    assert kind == "hub"
    assert f"corpus '{spec}'" in message
    assert "offline" in message
    assert "'builtin'" in message


def test_offline_without_a_cached_copy(monkeypatch):
    import datasets
    from huggingface_hub import constants

    def fail(*arguments, **options):
        raise ConnectionError("Couldn't reach 'emozilla/pg19-test' on the Hub\n(offline)")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    kind, message = error_of("pg19")
    assert kind == "hub"
    assert "emozilla/pg19-test): Couldn't reach" in message


def test_a_dataset_that_the_hub_does_not_have_or_give(monkeypatch):
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, expected in (("DatasetNotFoundError", "not_found"), ("GatedRepoError", "gated")):
        error = type(name, (Exception,), {})("no\nsuch dataset")

        def fail(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        assert error_of("hf:a/b")[0] == expected


@pytest.mark.parametrize(
    ("spec", "split", "expected"),
    [
        ("pg19", "test", ("emozilla/pg19-test", None, "test")),
        ("pg19", "train", ("emozilla/pg19", None, "train")),
        ("pg19", "validation", ("emozilla/pg19", None, "validation")),
        ("hf:a/b", "validation", ("a/b", None, "validation")),
        ("hf:a/b:en:train", "test", ("a/b", "en", "train")),
        ("hf:a/b::train:text", "test", ("a/b", None, "train")),
    ],
)
def test_what_is_asked_of_the_hub(monkeypatch, spec, split, expected):
    import datasets
    from huggingface_hub import constants

    asked = []

    def load_dataset(name, config, *, split, revision, streaming):
        asked.append((name, config, split))
        return [{"text": "one"}, {"text": "two"}]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = open_corpus(spec, split)
    assert [document.text for document in corpus] == ["one", "two"]
    assert asked == [expected]
    assert corpus.source == f"https://huggingface.co/datasets/{expected[0]}"
    kind, message = error_of("hf:a/b:::book")
    assert kind == "data"
    assert all(fact in message for fact in ("'book'", "text"))


def test_a_null_text_of_the_hub_is_skipped_and_counted(monkeypatch, caplog):
    import datasets
    from huggingface_hub import constants

    rows = [{"body": None}, {"body": "one"}, {"body": None}, {"body": 3}]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows[:3])
    assert [document.text for document in open_corpus("hf:some/nulls:::body")] == ["one"]
    (record,) = caplog.records
    assert contains(record.getMessage(), "hf:some/nulls:::body", 2, "some/nulls:test:0")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    assert error_of("hf:some/nulls:::body")[0] == "data"
