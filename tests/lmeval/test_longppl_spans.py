"""Key-token spans: mapped to the tokens of every kind of tokenizer, read from both formats, refused where damaged."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from longshort.corpora import Document, fingerprint, open_corpus, select
from longshort.lmeval.documents import character_offsets
from longshort.lmeval.longppl_spans import (
    Span,
    header_of,
    is_self_evaluated,
    merged,
    read_key_spans,
    row_of,
    to_line,
    tokens_inside,
)
from longshort.testing import tiny_tokenizer
from tests.errors import user_error
from tests.lmeval.test_documents import Slow
from tests.lmeval.test_first_tokens import TEXT, TOKENIZERS

BYTE_OF = {character: byte for byte, character in bytes_to_unicode().items()}
SENTENCES = f"{TEXT} père 日本 🙂🙂 {TEXT}"


def of_bytes(text: str, pieces: list[bytes], before: int = 0) -> list[Span]:
    """The characters that hold the bytes of each piece; the text begins after `before` bytes."""
    character_of = [-1] * before + [i for i, character in enumerate(text) for _ in character.encode()]
    found, place = [], 0
    for piece in pieces:
        inside = [character for character in character_of[place : place + len(piece)] if character >= 0]
        found.append((inside[0], inside[-1] + 1) if inside else (0, 0))
        place += len(piece)
    assert place == len(character_of)
    return found


def byte_level(text: str, names: list[str]) -> list[Span]:
    return of_bytes(text, [bytes(BYTE_OF[character] for character in name) for name in names])


def sentence_piece(text: str, names: list[str]) -> list[Span]:
    """With a space before the text, and characters outside the vocabulary as bytes."""
    pieces = [
        bytes([int(name[3:5], 16)]) if name.startswith("<0x") else name.replace("▁", " ").encode() for name in names
    ]
    return of_bytes(text, pieces, before=1)


def word_piece(text: str, names: list[str]) -> list[Span]:
    """Walk over the text, lower case and without accents, and skip white space."""

    def plain(character: str) -> str:
        parts = unicodedata.normalize("NFD", character.lower())
        return "".join(part for part in parts if unicodedata.category(part) != "Mn")

    found, place = [], 0
    for name in names:
        while text[place].isspace() or not plain(text[place]):
            place += 1
        start, rest = place, name.removeprefix("##")
        while rest:
            part = plain(text[place])
            assert rest.startswith(part), (name, text[start : place + 1])
            rest, place = rest.removeprefix(part), place + 1
        found.append((start, place))
    return found


KINDS: dict[str, Callable[[str, list[str]], list[Span]]] = {
    "GPT-2": byte_level,
    "Llama 3": byte_level,
    "Llama 2": sentence_piece,
    "WordPiece": word_piece,
}


def random_spans(text: str, generator: random.Random) -> list[Span]:
    bounds = sorted(generator.sample(range(len(text) + 1), 30))
    return list(zip(bounds[::2], bounds[1::2], strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_tokens_of_every_kind_of_tokenizer_inside_spans(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    generator = random.Random(name)
    characters = SENTENCES if name != "WordPiece" else SENTENCES.replace("<html>", "")
    ids, offsets = character_offsets(tokenizer, Document("d", characters), 10_000)
    names = tokenizer.convert_ids_to_tokens(ids)
    if name == "WordPiece":
        assert "[UNK]" not in names
    expected = KINDS[name](characters, names)
    assert any(len(characters[start:end].encode()) > end - start for start, end in expected)
    assert [tuple(pair) for pair in offsets.tolist()] == expected
    for _ in range(50):
        spans = random_spans(characters, generator)
        inside = [
            index
            for index, (start, end) in enumerate(expected)
            if index and any(first <= start and end <= last for first, last in spans)
        ]
        assert tokens_inside(offsets, merged(spans)) == inside


def test_a_character_of_several_tokens_belongs_to_each_of_them() -> None:
    tokenizer = tiny_tokenizer()
    ids, offsets = character_offsets(tokenizer, Document("d", "a🙂the日b"), 100)
    assert len(ids) == 1 + 4 + 1 + 3 + 1
    assert tokens_inside(offsets, [(1, 2)]) == [1, 2, 3, 4]
    assert tokens_inside(offsets, [(2, 5)]) == [5]
    assert tokens_inside(offsets, [(2, 4)]) == []
    assert tokens_inside(offsets, [(0, 1), (5, 7)]) == [6, 7, 8, 9]  # the first token has no context


def test_spans_of_one_tokenizer_select_the_same_text_with_another() -> None:
    """A span around a whole word selects the pieces of that word, whatever they are."""
    text = "the river was high père 日本語 and thin bridges"
    for name in KINDS:
        _, offsets = character_offsets(TOKENIZERS[name], Document("d", text), 100)
        for word in ("high", "père", "日本語", "bridges"):
            start = text.index(word)
            found = tokens_inside(offsets, [(start - 1, start + len(word))])
            covered = {place for index in found for place in range(*offsets[index])} - {start - 1}
            assert covered == set(range(start, start + len(word))), (name, word)


def test_slow_tokenizers_by_what_they_decode() -> None:
    text = "a日b père 🙂 " * 40
    ids, offsets = character_offsets(ByT5Tokenizer(), Document("d", text), 10_000)
    assert len(ids) == len(text.encode())
    assert [tuple(pair) for pair in offsets.tolist()] == of_bytes(text, [bytes([byte]) for byte in text.encode()])
    ids, offsets = character_offsets(ByT5Tokenizer(), Document("d", text), 3)  # in the middle of a character
    assert [tuple(pair) for pair in offsets.tolist()] == [(0, 1), (1, 2), (1, 2)]


def test_a_slow_tokenizer_that_decodes_to_another_text_is_refused() -> None:
    lower = Slow(lambda ids: bytes(ids).decode("utf-8", "replace").lower())
    with user_error("unsupported", "Slow", "a-name", field="tokenizer"):
        character_offsets(lower, Document("a-name", "Some Text"), 5)


def test_merging_joins_neighbours_and_leaves_out_what_is_inside() -> None:
    assert merged([]) == ()
    assert merged([(3, 5), (5, 9), (10, 12)]) == ((3, 9), (10, 12))
    assert merged([(5, 6), (5, 6), (5, 6)]) == ((5, 6),)
    assert merged([(3, 6), (5, 6), (6, 8)]) == ((3, 6), (5, 8))  # LongPPL's too: (4, 7) is inside neither


# ---- files


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i} has some words.."}) + "\n" for i in range(4)), "utf-8")
    return path


def documents_of(corpus: Path, count: int = 3) -> list[Document]:
    return select(open_corpus(str(corpus)), count, 8)


def write(path: Path, documents: list[Document], spans: list[list[Span]], **header: Any) -> Path:
    known = header_of({"pretrained": "E"}, {"spec": "made-from"}, {"short": 4}, len(documents)) | header
    rows = [row_of(d, s, len(d.text), 9, 2) for d, s in zip(documents, spans, strict=True)]
    path.write_text("".join(map(to_line, [known, *rows])), "utf-8")
    return path


SPANS: list[list[Span]] = [[(2, 5), (5, 8)], [], [(1, 26)]]


def test_reads_its_own_format(tmp_path: Path, corpus: Path) -> None:
    documents = documents_of(corpus)
    path = write(tmp_path / "spans.jsonl", documents[::-1], SPANS[::-1])  # texts decide, not the order
    found = read_key_spans(str(path), open_corpus(str(corpus)), documents)
    assert [found.documents[fingerprint([d])].spans for d in documents] == [((2, 8),), (), ((1, 26),)]
    assert found.record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.record["evaluator"] == {"pretrained": "E"}
    assert found.record["criterion"] == {"short": 4}
    assert found.record["corpus"] == {"spec": "made-from"}


def test_reads_a_folder_of_longppl(tmp_path: Path, corpus: Path) -> None:
    """As `find_key_token` writes it; slices count documents of the corpus, of which some may not be selected."""
    folder = tmp_path / "Some-Evaluator-8B"
    folder.mkdir()
    for index, text in enumerate(["[2, 5];[5, 8];[10, 12]", "", "[1, 26]", "[0, 1]"]):
        (folder / f"slice_{index}.txt").write_text(text)
    (folder / "README.md").write_text("other")
    everything = list(open_corpus(str(corpus)))
    found = read_key_spans(str(folder), open_corpus(str(corpus)), [everything[0], everything[2]])
    assert {text: spans.spans for text, spans in found.documents.items()} == {
        fingerprint([everything[0]]): ((2, 8), (10, 12)),
        fingerprint([everything[2]]): ((1, 26),),
    }
    assert found.record["evaluator"] == {"pretrained": "Some-Evaluator-8B"}
    before = found.record["sha256"]
    (folder / "slice_3.txt").write_text("[0, 2]")
    assert read_key_spans(str(folder), open_corpus(str(corpus)), everything).record["sha256"] != before


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("slice_2.txt", "[1, 26]", {2: ((1, 26),)}),
        ("spans.txt", "[2, 5]", {0: ((2, 5),)}),
        ("spans.txt", "[2, 5];[7,9]\n\n[1, 26]\n", {0: ((2, 5), (7, 9)), 1: (), 2: ((1, 26),)}),
        ("slice_0.txt", "", {0: ()}),
    ],
)
def test_reads_single_files_of_longppl(
    name: str, content: str, expected: dict[int, Any], tmp_path: Path, corpus: Path
) -> None:
    (tmp_path / name).write_text(content)
    documents = documents_of(corpus)
    found = read_key_spans(str(tmp_path / name), open_corpus(str(corpus)), documents)
    texts = [fingerprint([document]) for document in documents]
    assert {texts.index(text): spans.spans for text, spans in found.documents.items()} == expected


def test_spans_of_another_corpus_are_refused(tmp_path: Path, corpus: Path) -> None:
    path = write(tmp_path / "spans.jsonl", [Document("other", "another text")], [[(0, 3)]])
    with user_error("data", path, 3, corpus, "made-from", field="key_spans"):
        read_key_spans(str(path), open_corpus(str(corpus)), documents_of(corpus))
    (tmp_path / "slice_0.txt").write_text("[2, 5];[30, 41]")  # beyond the end
    with user_error("data", "slice_0.txt", "[30, 41]", 27, "corpus.jsonl:1", field="key_spans"):
        read_key_spans(str(tmp_path / "slice_0.txt"), open_corpus(str(corpus)), documents_of(corpus))
    (tmp_path / "slice_7.txt").write_text("[2, 5]")
    with user_error("data", "slice_7.txt", 7, 3, corpus, field="key_spans"):
        read_key_spans(str(tmp_path / "slice_7.txt"), open_corpus(str(corpus)), documents_of(corpus))


def test_a_document_that_the_file_lacks_is_not_there(tmp_path: Path, corpus: Path) -> None:
    documents = documents_of(corpus)
    path = write(tmp_path / "spans.jsonl", documents[:2], SPANS[:2])
    found = read_key_spans(str(path), open_corpus(str(corpus)), documents)
    assert set(found.documents) == {fingerprint([document]) for document in documents[:2]}


def damaged(path: Path, change: Callable[[list[str]], str]) -> Path:
    path.write_text(change(path.read_text("utf-8").splitlines(keepends=True)), "utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        pytest.param(lambda lines: "".join(lines[:-1]), (2, 3), id="a document is missing"),
        pytest.param(lambda lines: "".join(lines)[:-9], ("line 4",), id="cut within a line"),
        pytest.param(lambda lines: "".join(lines[1:]), ("line", "format"), id="no header"),
        pytest.param(lambda lines: "", ("empty",), id="empty"),
        pytest.param(lambda lines: "\0" + "".join(lines), ("line 1",), id="not JSON"),
        pytest.param(lambda lines: lines[0].replace('"version":1', '"version":2'), (2,), id="another version"),
        pytest.param(lambda lines: lines[0].replace('"evaluator"', '"x"'), ("line 1", "evaluator"), id="no evaluator"),
        pytest.param(lambda lines: "".join(lines).replace("[2,5]", "[5,2]"), ("line 2", "[5, 2]"), id="backwards"),
        pytest.param(lambda lines: "".join(lines).replace("[2,5]", "[2]"), ("line 2", "[2]"), id="half a span"),
        pytest.param(lambda lines: "".join(lines).replace("[2,5]", '["a",5]'), ("line 2", "['a', 5]"), id="text"),
        pytest.param(lambda lines: "".join(lines).replace("[2,5]", "[2,99]"), ("line 2", "[2, 99]"), id="beyond"),
        pytest.param(lambda lines: "".join(lines).replace('"spans":[]', '"spans":3'), ("line 3", "spans"), id="number"),
        pytest.param(lambda lines: "".join(lines).replace('"sha256"', '"sha"'), ("line 2", "sha256"), id="no hash"),
    ],
)
def test_damaged_files_are_refused(
    change: Callable[[list[str]], str], facts: tuple[Any, ...], tmp_path: Path, corpus: Path
) -> None:
    documents = documents_of(corpus)
    path = damaged(write(tmp_path / "spans.jsonl", documents, SPANS), change)
    with user_error("data", "spans.jsonl", *facts, field="key_spans"):
        read_key_spans(str(path), open_corpus(str(corpus)), documents)


@pytest.mark.parametrize("content", ["[2, 5];[6,", "[2, 5],[6, 7]", "2 5", "[5, 2]", "[2, -5]", "[2.5, 3]", "\xff\xfe"])
def test_damaged_files_of_longppl_are_refused(content: str, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "slice_0.txt").write_text(content, "latin-1")
    with user_error("data", "slice_0.txt", field="key_spans"):
        read_key_spans(str(tmp_path / "slice_0.txt"), open_corpus(str(corpus)), documents_of(corpus))


def test_what_is_not_there_is_refused(tmp_path: Path, corpus: Path) -> None:
    for spec, kind in ((tmp_path / "missing", "not_found"), (tmp_path, "data"), (tmp_path / ("x" * 300), "not_found")):
        with user_error(kind, spec, field="key_spans"):  # type: ignore[arg-type]  # a literal
            read_key_spans(str(spec), open_corpus(str(corpus)), documents_of(corpus))


def test_a_model_that_is_its_own_evaluator_is_recognized(tmp_path: Path, corpus: Path) -> None:
    path = write(tmp_path / "spans.jsonl", documents_of(corpus), SPANS, evaluator={"pretrained": "a/b", "peft": None})
    record = read_key_spans(str(path), open_corpus(str(corpus)), documents_of(corpus)).record
    assert is_self_evaluated(record, {"pretrained": "a/b"})
    assert is_self_evaluated(record, {"pretrained": "a/b", "revision": "main"})
    assert not is_self_evaluated(record, {"pretrained": "a/b", "revision": "step5"})
    assert not is_self_evaluated(record, {"pretrained": "a/b", "peft": "adapter"})
    assert not is_self_evaluated(record, {"pretrained": "a/c"})
    assert is_self_evaluated({"format": "self"}, {})
    assert not is_self_evaluated({"format": "key_text", "evaluator": {"pretrained": "a/b"}}, {"pretrained": "a/b"})


def test_a_folder_that_is_its_own_evaluator_is_recognized_from_elsewhere(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name / "model" for name in ("one", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(str(folder).encode())
    digest = hashlib.sha256((folders[0] / "model.safetensors").read_bytes()).hexdigest()
    evaluator = {"pretrained": "model", "revision": "main", "weights_sha256": digest}  # relative to another folder
    path = write(tmp_path / "spans.jsonl", documents_of(corpus), SPANS, evaluator=evaluator)
    record = read_key_spans(str(path), open_corpus(str(corpus)), documents_of(corpus)).record
    assert is_self_evaluated(record, {"pretrained": str(folders[0])})
    assert not is_self_evaluated(record, {"pretrained": str(folders[1])})
    assert not is_self_evaluated(record, {"pretrained": str(folders[0]), "peft": "adapter"})
    monkeypatch.chdir(tmp_path / "one")
    assert is_self_evaluated(record, {"pretrained": "./model"})


def test_offsets_are_of_the_whole_text_where_only_its_start_is_tokenized() -> None:
    text = "the river 日本 père " * 3000
    _, some = character_offsets(tiny_tokenizer(), Document("d", text), 500)
    _, every = character_offsets(tiny_tokenizer(), Document("d", text), 10**9)
    assert len(some) == 500
    np.testing.assert_array_equal(some, every[:500])
