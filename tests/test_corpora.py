import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from longshort import corpora
from longshort.corpora import BYTES_PER_TOKEN, Corpus, Document, fingerprint, open_corpus, select
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
    """The one-line message of reading a corpus to its end."""
    with pytest.raises(UserError) as raised:
        list(open_corpus(str(spec)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


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
    assert "nor a known name" in error_of(tmp_path / "missing.txt")
    assert "nor a known name" in error_of(tmp_path / "*.txt")
    assert "nor a known name" in error_of("pg20")
    assert "the folder holds no .txt" in error_of(tmp_path)
    (tmp_path / "book.pdf").write_text("")
    assert "book.pdf is none of .txt" in error_of(tmp_path / "book.pdf")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"text": "cut', "not valid JSON"),
        (b"plain text", "not valid JSON"),
        (b'{"title": "no text"}', "no text"),
        (b'{"text": null}', "no text"),
        (b'["text"]', "no text"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b"1" * 5000, "not valid JSON that can be read (Exceeds the limit (4300"),
        (b"[" * 100_000, "not valid JSON that can be read (maximum recursion depth"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, cause):
    (tmp_path / "a.jsonl").write_bytes(jsonl(["good", "good"]) + line + b"\n" + jsonl(["good"]))
    message = error_of(tmp_path / "a.jsonl")
    assert f"{tmp_path / 'a.jsonl'}, line 3: {cause}" in message


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    assert "a.txt is not UTF-8 text (byte 2)" in error_of(tmp_path / "a.txt")


def test_zstd_files_cut_off_or_damaged(tmp_path):
    packed = zstandard.compress(jsonl([str(number) for number in range(5000)]))
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(packed[:-10])
    assert "incomplete zstd file" in error_of(path)
    path.write_bytes(b"not zstd at all")
    assert "damaged zstd file" in error_of(path)


def test_parquet_files_cut_off_or_damaged(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, ["text " * 1000] * 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert f"{path} is not a readable Parquet file" in error_of(path)
    path.write_bytes(whole[:4] + b"\x99" * (len(whole) // 4) + whole[4 + len(whole) // 4 :])
    assert f"{path} is not a readable Parquet file" in error_of(path)


def test_parquet_files_without_text(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x"], "title")
    assert "no text column. Expected one of text, content, document; it has id, title." in error_of(
        tmp_path / "a.parquet"
    )
    write_parquet(tmp_path / "a.parquet", [[1, 2]])
    assert "column 'text' holds list<element: int64>, not text" in error_of(tmp_path / "a.parquet")


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
    with pytest.raises(UserError, match="holds no document with text in it"):
        select(open_corpus(str(tmp_path / "a.jsonl")), 4, 16)


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
    assert "expected hf:OWNER/NAME[:CONFIG][:SPLIT][:COLUMN]" in error_of(spec)


@pytest.mark.parametrize("spec", ["pg19", "hf:some/data"])
def test_a_hub_that_cannot_be_reached(monkeypatch, spec):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port
    message = error_of(spec)
    assert f"corpus '{spec}'" in message
    assert "What works offline: 'builtin'" in message


def test_offline_without_a_cached_copy(monkeypatch):
    import datasets
    from huggingface_hub import constants

    def fail(*arguments, **options):
        raise ConnectionError("Couldn't reach 'emozilla/pg19-test' on the Hub\n(offline)")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert "emozilla/pg19-test): Couldn't reach" in error_of("pg19")


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
    with pytest.raises(UserError, match="no text column 'book'; it has text"):
        list(open_corpus("hf:a/b:::book"))
