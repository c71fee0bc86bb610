"""Reading, cutting, shuffling, windows, shifts, BOS; one stream for any number of processes."""

import json
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader

from longshort.corpora import Corpus, Document, fingerprint, open_corpus
from longshort.errors import UserError
from longshort.training import windows as module
from longshort.training.byte_tokenizer import byte_tokenizer
from longshort.training.windows import Reading, WindowPairs, collate, default_bos, read_sequences
from tests.errors import user_error

T, MAX_EXTRA = 6, 3
LENGTH = T + MAX_EXTRA
TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.fixture
def corpus(tmp_path):
    texts = ["a" * 20, "bc", "de" * 15, "fghijklmnopq"]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return open_corpus(str(path), "train")


def corpus_of(texts):
    return Corpus("memory", "memory", None, None, lambda: (Document(str(i), text) for i, text in enumerate(texts)))


@dataclass
class Numbers:
    """Tokens that say where they come from: document i, token j is 100·i + j; counts what is tokenized."""

    eos_token_id: int | None = None
    bos_token_id: int | None = None
    calls: list[str] = field(default_factory=list)

    def __call__(self, text, add_special_tokens, verbose):
        self.calls.append(text)
        document, length = map(int, text.split(":"))
        return {"input_ids": [100 * document + i for i in range(length)]}


def numbered(lengths):
    return corpus_of([f"{document}:{length}" for document, length in enumerate(lengths)])


def pairs(lengths=(LENGTH,) * 7, **changes):
    options = {"windows": 2, "steps": 5, "sequences_per_step": 4, "seed": 0, "bos_token_id": None}
    options |= {"tokenizer": Numbers(), "train_length": T, "max_extra": MAX_EXTRA}
    return WindowPairs(numbered(lengths), **(options | changes))


def firsts(dataset):
    """The first token of every sequence."""
    return [item["windows"][0, 0].item() for item in dataset]


def small_buffer(monkeypatch, sequences):
    monkeypatch.setattr(module, "BUFFER_SEQUENCES", sequences)


# ---------------------------------------------------------------- reading


def read(corpus, tokenizer=TOKENIZER, length=LENGTH, **options):
    reading = Reading()
    return [ids.tolist() for ids in read_sequences(corpus, tokenizer, length, reading, **options)], reading


def test_sequences_cross_no_document(corpus):
    sequences, reading = read(corpus)
    assert [TOKENIZER.decode(ids) for ids in sequences] == [
        "a" * 9,
        "a" * 9,
        "dededeede"[:6] + "ded",
        "edededede",
        "dededeede"[:6] + "ded",
        "fghijklmn",
    ]
    assert reading.num_documents == 4
    assert reading.num_sequences == 6
    assert reading.sha256 == fingerprint(corpus)


def test_no_more_is_read_than_is_asked_for(corpus):
    reading = Reading()
    sequences = read_sequences(corpus, TOKENIZER, LENGTH, reading)
    assert reading.num_documents == 0
    next(sequences)
    assert (reading.num_documents, reading.num_sequences) == (1, 1)
    assert reading.sha256 == fingerprint(list(corpus)[:1])
    next(sequences)
    next(sequences)
    assert reading.num_documents == 3
    assert reading.sha256 == fingerprint(list(corpus)[:3])


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(0, 40), max_size=8), length=st.integers(1, 15), crossing=st.booleans())
def test_cutting_is_that_of_whole_token_lists(lengths, length, crossing):
    documents = [[100 * i + j for j in range(count)] for i, count in enumerate(lengths)]
    if crossing:
        joined = [token for tokens in documents if tokens for token in [*tokens, -1]]
        documents = [joined]
    expected = [
        tokens[start : start + length] for tokens in documents for start in range(0, len(tokens) - length + 1, length)
    ]
    if not expected:
        with pytest.raises(UserError):
            read(numbered(lengths), Numbers(eos_token_id=-1), length, cross_documents=crossing)
        return
    sequences, reading = read(numbered(lengths), Numbers(eos_token_id=-1), length, cross_documents=crossing)
    assert sequences == expected
    assert reading.num_sequences == len(expected)


def test_joined_documents_have_eos_between_them(corpus):
    sequences, reading = read(corpus, cross_documents=True)
    text = "a" * 20 + "|" + "bc" + "|" + "de" * 15 + "|" + "fghijklmnopq" + "|"
    ids = [EOS if character == "|" else ord(character) for character in text]
    assert sequences == [ids[start : start + LENGTH] for start in range(0, len(ids) - LENGTH + 1, LENGTH)]
    assert reading.sha256 == fingerprint(corpus)


def test_joining_needs_an_eos():
    with user_error("setting", "--cross-documents", "EOS", field="cross_documents"):
        pairs(cross_documents=True)
    assert len(list(pairs(cross_documents=True, tokenizer=Numbers(eos_token_id=-1)))) == 20


@settings(deadline=None, max_examples=60)
@given(text=st.text(alphabet="ab \nü日", min_size=LENGTH, max_size=80), size=st.integers(1, 30))
def test_a_long_document_is_tokenized_in_parts_that_end_before_white_space(text, size):
    calls = []

    def tokenizer(part, **options):
        calls.append(part)
        return TOKENIZER(part, **options)

    before = module.SLICE_CHARACTERS
    module.SLICE_CHARACTERS = size
    try:
        sliced, _ = read(corpus_of([text]), tokenizer)
    finally:
        module.SLICE_CHARACTERS = before
    assert "".join(calls) == text
    assert all(0 < len(part) <= size for part in calls)
    for part, rest in pairwise(calls):
        assert rest[0] in " \n" or not {" ", "\n"} & set(part[1:])
    assert sliced == read(corpus_of([text]))[0]  # bytes have no merges that a cut could break


def test_no_document_is_long_enough(corpus):
    with user_error("text", "texts.jsonl", 40, 4, 30, "--train-length", "--max-extra", field="corpus"):
        read(corpus, length=40)
    with user_error("text", "texts.jsonl", 4, 68, 100, "--train-length", field="corpus"):
        read(corpus, length=100, cross_documents=True)


def test_the_search_for_a_long_document_ends(monkeypatch):
    monkeypatch.setattr(module, "MAX_DOCUMENTS_READ", 3)
    tokenizer = Numbers()
    with user_error("text", "memory", LENGTH, 3, 5, field="corpus"):
        read(numbered([1, 5, 2, LENGTH]), tokenizer)
    assert len(tokenizer.calls) == 3
    assert len(read(numbered([1, LENGTH, 2, 2, LENGTH]), tokenizer)[0]) == 2


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize(("lengths", "count"), [((), 0), ((0, 0), 2)])
def test_nothing_to_read(lengths, count, crossing):
    with user_error("text", "'memory'", count, "--corpus", "--tokenizer", field="corpus"):
        read(numbered(lengths), Numbers(eos_token_id=-1), cross_documents=crossing)


def test_half_a_surrogate_pair_does_not_stop_the_reading(tmp_path):
    path = tmp_path / "odd.jsonl"
    path.write_text('{"text": "abc\\ud800defghij"}')
    assert len(read(open_corpus(str(path)))[0]) == 1


def test_the_first_sequence_can_be_checked_early():
    tokenizer = Numbers()
    dataset = pairs([1, LENGTH, LENGTH], tokenizer=tokenizer)
    dataset.check()
    assert tokenizer.calls == ["0:1", f"1:{LENGTH}"]
    assert dataset.reading.num_documents == 0
    assert firsts(dataset) == firsts(pairs([1, LENGTH, LENGTH]))
    with user_error("text", "memory", LENGTH, 2, field="corpus"):
        pairs([1, 2]).check()


# ---------------------------------------------------------------- order


@pytest.mark.parametrize("capacity", [7, 100])
def test_every_sequence_once_per_pass_and_tokenized_once(monkeypatch, capacity):
    small_buffer(monkeypatch, capacity)
    tokenizer = Numbers()
    dataset = pairs(tokenizer=tokenizer, steps=7, sequences_per_step=3)
    order = firsts(dataset)
    passes = [order[start : start + 7] for start in (0, 7, 14)]
    assert [sorted(one) for one in passes] == [[0, 100, 200, 300, 400, 500, 600]] * 3
    assert len({tuple(one) for one in passes}) == 3
    assert len(tokenizer.calls) == 7


@pytest.mark.parametrize("capacity", [1, 3, 6])
def test_a_corpus_larger_than_the_buffer_is_shuffled_within_it(monkeypatch, capacity):
    small_buffer(monkeypatch, capacity)
    tokenizer = Numbers()
    order = firsts(pairs(tokenizer=tokenizer, steps=7, sequences_per_step=3))
    assert len(tokenizer.calls) == 21
    for start in (0, 7, 14):
        one = order[start : start + 7]
        assert sorted(one) == [0, 100, 200, 300, 400, 500, 600]
        # The k-th sequence drawn is among the first k + capacity that were read.
        assert all(first // 100 <= place + capacity for place, first in enumerate(one))
    assert len({tuple(order[start : start + 7]) for start in (0, 7, 14)}) == (3 if capacity > 1 else 1)


def test_all_orders_of_a_pass_are_equally_likely():
    counts = {}
    for seed in range(1200):
        order = tuple(firsts(pairs([LENGTH] * 3, seed=seed, steps=1, sequences_per_step=3)))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert all(150 < count < 250 for count in counts.values())  # 200 expected, standard deviation 13


def test_long_sequences_have_a_smaller_buffer(monkeypatch):
    monkeypatch.setattr(module, "BUFFER_TOKENS", 3 * LENGTH + 1)
    dataset = pairs(steps=1, sequences_per_step=1)
    next(iter(dataset))
    assert dataset.reading.num_sequences == 4  # three in the buffer, and the one that replaced the first drawn
    monkeypatch.setattr(module, "BUFFER_TOKENS", 1)
    assert len(firsts(pairs())) == 20


def test_the_record_is_of_the_first_pass(monkeypatch):
    small_buffer(monkeypatch, 2)
    lengths = [LENGTH, 1, LENGTH, LENGTH]
    dataset = pairs(lengths, steps=1, sequences_per_step=1)
    items = iter(dataset)
    next(items)
    assert dataset.reading.num_documents == 4
    dataset = pairs(lengths, steps=5, sequences_per_step=3)
    assert len(list(dataset)) == len(dataset) == 15
    assert len(list(dataset)) == 15  # reading again does not count twice
    assert (dataset.reading.num_documents, dataset.reading.num_sequences) == (4, 3)
    assert dataset.reading.sha256 == fingerprint(dataset.corpus)


def test_sequences_are_held_as_int32_of_their_own():
    sequence = next(read_sequences(numbered([50]), Numbers(), LENGTH, Reading()))
    assert sequence.dtype == np.int32
    assert sequence.base is None


# ---------------------------------------------------------------- items


def test_windows_are_the_two_ends_of_a_sequence():
    for item in pairs():
        long, short = item["windows"].tolist()
        start = long[0]
        assert start % 100 == 0
        assert long == list(range(start, start + T))
        assert short == list(range(start + item["extra"], start + item["extra"] + T))
        assert item["windows"].dtype == torch.long


def test_one_shift_per_step_over_the_whole_range():
    extras = [item["extra"] for item in pairs(steps=300)]
    assert all(len(set(extras[step * 4 : step * 4 + 4])) == 1 for step in range(300))
    assert np.bincount(extras[::4], minlength=MAX_EXTRA + 1).min(initial=300, where=[False, True, True, True]) > 70
    assert set(extras) == {1, 2, 3}


def drawn(**changes):
    return [(item["windows"].tolist(), item["extra"]) for item in pairs([20] * 7, **changes)]


@pytest.mark.parametrize("capacity", [4, 100])
def test_the_seed_alone_decides(monkeypatch, capacity):
    small_buffer(monkeypatch, capacity)
    assert drawn() == drawn()
    assert [windows for windows, _ in drawn()] != [windows for windows, _ in drawn(seed=1)]
    assert [extra for _, extra in drawn()] != [extra for _, extra in drawn(seed=1)]
    # A one-window run reads window A of the same sequences, a longer run the same at first.
    assert [windows[:1] for windows, _ in drawn()] == [windows for windows, _ in drawn(windows=1)]
    assert drawn(steps=9)[:20] == drawn()


def draw_positions(generator):
    t = int(generator.integers(1, 17))
    return t, torch.from_numpy(generator.integers(0, 1000, T))


def test_t_and_positions_are_drawn_per_sequence():
    items = list(pairs(positions=draw_positions, steps=6))
    for place, item in enumerate(items):
        t, positions = draw_positions(np.random.default_rng([0, 2, place // 4, place % 4]))  # seed, 2, step, index
        assert item["clex_t"] == t
        assert torch.equal(item["clex_positions"], positions)
    assert max(len({item["clex_t"] for item in items[4 * step : 4 * step + 4]}) for step in range(6)) > 2
    assert len({tuple(item["clex_positions"].tolist()) for item in items}) == 24
    assert [item["clex_t"] for item in pairs(positions=draw_positions, seed=1)] != [
        item["clex_t"] for item in items[:20]
    ]
    plain = list(pairs(steps=6))
    assert "clex_t" not in plain[0]
    assert all(torch.equal(one["windows"], other["windows"]) for one, other in zip(items, plain, strict=True))


@pytest.mark.parametrize("windows", [1, 2])
def test_both_windows_of_a_sequence_share_t_and_positions(windows):
    items = list(pairs(positions=draw_positions, windows=windows))[:4]
    batch = collate(items)
    assert set(batch) == {"input_ids", "extra", "special", "clex_t", "clex_positions"}
    assert (batch["clex_t"].dtype, batch["clex_positions"].dtype) == (torch.int64, torch.int64)
    assert batch["clex_t"].tolist() == [item["clex_t"] for item in items] * windows
    assert batch["clex_positions"].tolist() == [item["clex_positions"].tolist() for item in items] * windows
    assert len(batch["clex_t"]) == len(batch["input_ids"])
    assert "clex_positions" in items[0]  # an item is left as it is


def test_collate_puts_all_long_windows_first():
    items = list(pairs())[:4]
    batch = collate(items)
    assert batch["input_ids"].shape == (8, T)
    for row, item in enumerate(items):
        assert torch.equal(batch["input_ids"][row], item["windows"][0])
        assert torch.equal(batch["input_ids"][4 + row], item["windows"][1])
    assert batch["extra"] == items[0]["extra"]
    assert "windows" in items[0]  # an item is left as it is


def test_bos_replaces_the_first_token_of_both_windows():
    for item, plain in zip(pairs(bos_token_id=999, steps=9), pairs(steps=9), strict=True):  # also in later passes
        assert item["windows"][:, 0].tolist() == [999, 999]
        assert torch.equal(item["windows"][:, 1:], plain["windows"][:, 1:])
        assert (item["special"], plain["special"]) == (1, 0)
    assert collate([item])["special"] == 1


def test_bos_only_where_the_tokenizer_prepends_it():
    tokenizer = byte_tokenizer()
    assert default_bos(tokenizer) is None
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert default_bos(tokenizer) is None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    assert default_bos(tokenizer) == tokenizer.bos_token_id == 257


# ---------------------------------------------------------------- processes, resume


def loader(num_processes, process_index, batch_size):
    """What the Trainer makes of the dataset."""
    dataset = pairs([20] * 11, steps=3, sequences_per_step=12, positions=draw_positions)
    return prepare_data_loader(
        DataLoader(dataset, batch_size=batch_size, collate_fn=collate),
        num_processes=num_processes,
        process_index=process_index,
        dispatch_batches=False,
        put_on_device=False,
    )


def rows(batch):
    """(A, B, t, positions, extra) of every sequence of a micro-batch."""
    long, short = batch["input_ids"].chunk(2)
    t, positions = (batch[name].chunk(2) for name in ("clex_t", "clex_positions"))
    assert torch.equal(*t)
    assert torch.equal(*positions)
    columns = (column.tolist() for column in (long, short, t[0], positions[0]))
    return [(*row, batch["extra"]) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize("capacity", [5, 100])
@pytest.mark.parametrize(("num_processes", "batch_size"), [(1, 1), (1, 4), (1, 12), (2, 2), (2, 6), (3, 4), (4, 1)])
def test_a_step_holds_the_same_sequences_however_it_is_split(monkeypatch, capacity, num_processes, batch_size):
    small_buffer(monkeypatch, capacity)
    whole = [rows(batch) for batch in loader(1, 0, 12)]
    shares = [[rows(batch) for batch in loader(num_processes, index, batch_size)] for index in range(num_processes)]
    accumulated = 12 // (num_processes * batch_size)
    assert [len(share) for share in shares] == [3 * accumulated] * num_processes
    for step in range(3):
        micro = [share[index] for index in range(step * accumulated, (step + 1) * accumulated) for share in shares]
        assert [row for batch in micro for row in batch] == whole[step]


@pytest.mark.parametrize(("num_processes", "process_index"), [(1, 0), (2, 1)])
def test_resuming_goes_on_with_the_next_batch(num_processes, process_index):
    batches = [rows(batch) for batch in loader(num_processes, process_index, 2)]
    resumed = [rows(batch) for batch in skip_first_batches(loader(num_processes, process_index, 2), 7)]
    assert resumed == batches[7:]


def test_every_process_records_what_all_have_read():
    records = []
    for index in range(2):
        batches = loader(2, index, 2)
        list(batches)
        records.append(batches.dataset.dataset.reading)
    assert records[0].sha256 == records[1].sha256 == fingerprint(numbered([20] * 11))
