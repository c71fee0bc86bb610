"""`longshort key-spans` against LongPPL's package and a dense loop; interruptions; wrong input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longshort.corpora import fingerprint, open_corpus, select
from longshort.key_spans import find
from longshort.lmeval.longppl_spans import merged
from longshort.results import read_results
from longshort.scoring.key_tokens import Criterion
from longshort.testing import save_checkpoint, save_corpus
from tests.errors import assert_facts
from tests.lmeval.reference import Reference
from tests.lmeval.test_commands import in_process, only_result
from tests.lmeval.test_longppl import dense_key_tokens
from tests.lmeval.test_longppl_spans import byte_level

CRITERION = Criterion(short=20, stride=8, min_gain=0.1, max_loss=8.0)
OPTIONS = ("--short", "20", "--stride", "8", "--min-gain", "0.1", "--max-loss", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("models") / "evaluator", bos=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", num_docs=4, num_bytes=300)


def command(evaluator: Path, corpus: Path, output: Path, *more: str) -> Any:
    chosen = ("--corpus", str(corpus), "--lengths", "32,100", "--num-docs", "3", "-o", str(output))
    return in_process("key-spans", str(evaluator), *chosen, *OPTIONS, *more)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_spans_equal_a_dense_loop(evaluator: Path, corpus: Path, tmp_path: Path) -> None:
    done = command(evaluator, corpus, tmp_path / "spans.jsonl")
    assert done.returncode == 0, done.stderr
    header, *rows = lines(tmp_path / "spans.jsonl")
    documents = select(open_corpus(str(corpus)), 3, 101)
    reference = Reference(evaluator)
    for document, row in zip(documents, rows, strict=True):
        ids = reference.text_tokens(document.text)[:125]  # 1.25 times the longest length
        offsets = byte_level(
            document.text, reference.tokenizer.convert_ids_to_tokens(reference.text_tokens(document.text))
        )
        keys = dense_key_tokens(reference, ids, CRITERION)
        assert len(keys) > 10
        assert [tuple(span) for span in row["spans"]] == list(merged(offsets[index] for index in keys))
        assert (row["key_tokens"], row["tokens"]) == (len(keys), 126)
        assert row["characters"] == offsets[124][1]
        assert (row["name"], row["sha256"]) == (document.name, fingerprint([document]))
    assert header["evaluator"] | {"weights_sha256": ""} == {
        "pretrained": str(evaluator),
        "revision": "main",
        "dtype": "float32",
        "weights_sha256": "",
    }
    assert header["corpus"]["sha256"] == fingerprint(documents)
    assert header["criterion"] == {"short": 20, "stride": 8, "min_gain": 0.1, "max_loss": 8.0}
    assert_facts(done.stdout.strip(), "spans.jsonl", sum(row["key_tokens"] for row in rows), 3)


@pytest.mark.parametrize("num_bytes", [60, 300])
def test_spans_equal_those_of_the_package(evaluator: Path, num_bytes: int, tmp_path: Path) -> None:
    """Also where a document is shorter than the longest length, and where the last window is short."""
    package = pytest.importorskip("longppl.longppl", reason="no longppl: pip install --no-deps longppl==0.3.0")
    corpus = save_corpus(tmp_path / "corpus.jsonl", num_docs=3, num_bytes=num_bytes)
    done = command(evaluator, corpus, tmp_path / "spans.jsonl", "--lengths", "4000")
    assert done.returncode == 0, done.stderr
    reference = Reference(evaluator)
    for document, row in zip(open_corpus(str(corpus)), lines(tmp_path / "spans.jsonl")[1:], strict=True):
        theirs = package.find_key_token(document.text, reference.model, reference.tokenizer, 20, 8, None, 0.1, -8)
        assert row["characters"] == len(document.text)
        kept = {tuple(span) for span in theirs.tolist()}
        ours = {tuple(span) for span in row["spans"]}
        assert ours <= kept
        assert all(any(a <= start and end <= b for a, b in ours) for start, end in kept)


def test_a_result_records_whose_key_tokens_it_is_of(evaluator: Path, corpus: Path, tmp_path: Path) -> None:
    spans, model = tmp_path / "spans.jsonl", save_checkpoint(tmp_path / "model", seed=3)
    assert command(evaluator, corpus, spans).returncode == 0
    chosen = ("--corpus", str(corpus), "--lengths", "32,100", "--num-docs", "3", "--tasks", "longshort_longppl")
    for checkpoint, metric in ((model, "longppl"), (evaluator, "longppl_self")):
        out = tmp_path / checkpoint.name
        done = in_process("eval", str(checkpoint), *chosen, "--key-spans", str(spans), "-o", str(out))
        assert done.returncode == 0, done.stderr
        recorded = only_result(out)["configs"]["longshort_longppl"]["metadata"]["scored"]["key_spans"]
        header = lines(spans)[0]
        assert recorded["evaluator"] == header["evaluator"]
        assert recorded["criterion"] == header["criterion"]
        assert recorded["corpus"]["sha256"] == header["corpus"]["sha256"]
        assert recorded["self_evaluated"] is (checkpoint == evaluator)
        assert metric in set(read_results(out)["metric"])


# ---- interruptions


class Killed(BaseException):
    pass


def test_an_interrupted_run_resumes_and_gives_the_same_file(
    evaluator: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(evaluator, corpus, tmp_path / "whole.jsonl").returncode == 0
    original, read = find.find_spans, []

    def killed_at(last: int) -> Any:
        def find_spans(backend: Any, document: Any, *more: Any) -> Any:
            if len(read) == last:
                raise Killed
            read.append(document.name)
            return original(backend, document, *more)

        return find_spans

    output, part = tmp_path / "spans.jsonl", tmp_path / "spans.jsonl.part"
    monkeypatch.setattr(find, "find_spans", killed_at(2))
    with pytest.raises(Killed):
        command(evaluator, corpus, output)
    assert not output.exists()
    content = part.read_bytes()
    part.write_bytes(content[:-7])  # as if killed while the second document was written
    monkeypatch.setattr(find, "find_spans", killed_at(99))
    done = command(evaluator, corpus, output)
    assert done.returncode == 0, done.stderr
    assert read == ["corpus.jsonl:2", "corpus.jsonl:3", "corpus.jsonl:3", "corpus.jsonl:4"]
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not part.exists()
    read.clear()
    assert command(evaluator, corpus, output).returncode == 0  # complete: nothing is read
    assert read == []


@pytest.mark.parametrize("content", ["", "{}\n", "no JSON\n", '{"format":"x"}\n{"sha256":1}\n', "\n\n"])
def test_parts_of_other_runs_are_not_used(evaluator: Path, corpus: Path, content: str, tmp_path: Path) -> None:
    assert command(evaluator, corpus, tmp_path / "whole.jsonl").returncode == 0
    (tmp_path / "spans.jsonl.part").write_text(content)
    done = command(evaluator, corpus, tmp_path / "spans.jsonl")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "spans.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_part_of_other_thresholds_is_not_used(
    evaluator: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise Killed

    original, output = find.Part.add, tmp_path / "spans.jsonl"
    monkeypatch.setattr(find.Part, "add", lambda self, row: original(self, row) or stop())
    with pytest.raises(Killed):
        command(evaluator, corpus, output)
    monkeypatch.undo()
    assert command(evaluator, corpus, output, "--min-gain", "0.5").returncode == 0
    assert command(evaluator, corpus, tmp_path / "whole.jsonl", "--min-gain", "0.5").returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


# ---- wrong input


def test_the_file_of_another_run_is_kept(evaluator: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "spans.jsonl"
    assert command(evaluator, corpus, output).returncode == 0
    before = output.read_bytes()
    done = command(evaluator, corpus, output, "--max-loss", "3")
    assert done.returncode == 1
    assert_facts(done.stderr.splitlines()[-1], output, "max_loss", "3.0")
    output.write_bytes(before[:100])
    done = command(evaluator, corpus, output)
    assert done.returncode == 1
    assert_facts(done.stderr.splitlines()[-1], output)
    assert output.read_bytes() == before[:100]


@pytest.mark.parametrize(
    ("options", "code", "facts"),
    [
        (("--short", "100"), 1, ("100", "--lengths", "--short")),
        (("--short", "0"), 2, ("--short",)),
        (("--stride", "-1"), 2, ("--stride",)),
        (("--min-gain", "nan"), 2, ("--min-gain", "nan")),
        (("--lengths", "a"), 2, ("lengths", "a")),
        (("--corpus", "/no/such.jsonl"), 1, ("/no/such.jsonl",)),
        (("--device", "cuda:9"), 1, ("cuda:9",)),
        (("--model-args", "x"), 2, ("--model-args", "x")),
        (("-o", "/dev/null/spans.jsonl"), 1, ("/dev/null",)),
    ],
)
def test_wrong_options(evaluator: Path, corpus: Path, tmp_path: Path, options: Any, code: int, facts: Any) -> None:
    done = command(evaluator, corpus, tmp_path / "spans.jsonl", *options)
    assert done.returncode == code
    text = " ".join(done.stderr.replace("│", " ").split())
    assert_facts(text, *facts)
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_evaluator_that_cannot_be_loaded(corpus: Path, tmp_path: Path) -> None:
    done = command(tmp_path / "missing", corpus, tmp_path / "spans.jsonl")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert_facts(done.stderr.strip(), tmp_path / "missing")
    broken = save_checkpoint(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"")
    done = command(broken, corpus, tmp_path / "spans.jsonl")
    assert done.returncode == 1
    assert_facts(done.stderr.splitlines()[-1], broken)
    assert not (tmp_path / "spans.jsonl").exists()


def test_no_key_tokens_are_reported(evaluator: Path, corpus: Path, tmp_path: Path) -> None:
    done = command(evaluator, corpus, tmp_path / "spans.jsonl", "--min-gain", "50")
    assert done.returncode == 0
    assert_facts(done.stdout.strip(), 0, 3)
    assert "thresholds" in done.stderr
