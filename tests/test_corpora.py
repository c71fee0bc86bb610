import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from longshort import corpora
from longshort.corpora import BYTES_PER_TOKEN, Corpus, Document, fingerprint, matching_files, open_corpus, select
from longshort.errors import UserError

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


@pytest.mark.parametrize("column", corpora.TEXT_COLUMNS)
def test_jsonl_zst_and_parquet_hold_the_same_documents(tmp_path, column):
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS, column))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(jsonl(TEXTS, column)))
    write_parquet(tmp_path / "a.parquet", TEXTS, column)
    for name in ("a.jsonl", "a.jsonl.zst", "a.parquet"):
        assert texts_of(tmp_path / name) == TEXTS


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


def test_an_empty_value_in_parquet_is_an_empty_document(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x", None, "y"])
    assert texts_of(tmp_path / "a.parquet") == ["x", "", "y"]


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
        (b'{"text": null}', "text"),
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
