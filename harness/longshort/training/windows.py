"""From the documents of a corpus, read as they are needed, to pairs of overlapping windows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from longshort.corpora import MAX_DOCUMENTS_READ, Corpus, update_fingerprint
from longshort.errors import UserError
from longshort.scoring.special_tokens import special_tokens_before

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

# Sequences are shuffled in a buffer of this many, or of fewer where they are long: filling it delays the first
# step, and every process holds one (32 MiB).
BUFFER_SEQUENCES = 4096
BUFFER_TOKENS = 2**23
SLICE_CHARACTERS = 2**18  # a tokenizer takes some 400 bytes per character of what it is given at once


@dataclass
class Reading:
    """What one pass over a corpus has read so far."""

    num_documents: int = 0
    num_sequences: int = 0
    longest: int = 0  # tokens of the longest document; of all of them where they are joined
    _digest: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """Of the documents read, in order, as `corpora.fingerprint` gives it."""
        return str(self._digest.hexdigest())


def read_sequences(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    reading: Reading,
    *,
    cross_documents: bool = False,
    num_embeddings: int | None = None,
) -> Iterator[NDArray[np.int32]]:
    """Cut documents into consecutive sequences of `length` tokens, in the corpus's order.

    No sequence crosses two documents, and what is left at a document's end is dropped; with `cross_documents`
    every document ends with EOS, and the next one follows. No other special tokens are added. A document of more
    than `SLICE_CHARACTERS` is tokenized in parts that end before a space or a line break, so a token may
    differ there from those of the whole text.

    Args:
        corpus: where from.
        tokenizer: the model's; with an EOS where documents are joined.
        length: tokens of a sequence.
        reading: a new one; says at any time what was read.
        cross_documents: join documents.
        num_embeddings: tokens that the model has an embedding for; None if that is not known.

    Yields:
        Token ids  # [length]

    Raises:
        UserError: no document is long enough, or the first `MAX_DOCUMENTS_READ` are not; a token has no embedding.
    """
    left = np.empty(0, np.int32)  # tokens that wait for the rest of their sequence
    size = 0
    for document in corpus:
        reading.num_documents += 1
        update_fingerprint(reading._digest, document)
        if not cross_documents:
            left, size = left[:0], 0
        for ids in tokens_of(document.text, tokenizer, with_eos=cross_documents, num_embeddings=num_embeddings):
            size += len(ids)
            reading.longest = max(reading.longest, size)
            left = np.concatenate([left, ids])  # [fewer than length + those of a slice]
            while len(left) >= length:
                reading.num_sequences += 1
                yield left[:length].copy()  # a view would hold all of `left`
                left = left[length:]
        if reading.num_sequences == 0 and reading.num_documents == MAX_DOCUMENTS_READ:
            break
    if reading.num_sequences == 0:
        raise UserError(_why_none(corpus, length, reading, cross_documents), "text", "corpus")


def tokens_of(
    text: str, tokenizer: PreTrainedTokenizerBase, *, with_eos: bool = False, num_embeddings: int | None = None
) -> Iterator[NDArray[np.int32]]:
    """Tokenize a text in parts of at most `SLICE_CHARACTERS`, see `read_sequences`.

    Yields:
        Token ids of a part, without special ones; at the end EOS if asked for  # [n]

    Raises:
        UserError: a token is beyond the embeddings of the model.
    """
    start = count = 0
    while start < len(text):
        stop = start + SLICE_CHARACTERS
        if stop < len(text):
            # The white space goes to the next part: tokens of words mostly begin with it.
            space = max(text.rfind(white, start + 1, stop) for white in " \n")
            stop = space if space > 0 else stop
        # JSON can carry half a surrogate pair, which tokenizers refuse.
        part = text[start:stop].encode("utf-8", errors="replace").decode("utf-8")
        ids = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        count += len(ids)
        require_embedding(max(ids, default=None), tokenizer, num_embeddings)
        yield np.array(ids, np.int32)
        start = stop
    if with_eos and count:
        require_embedding(tokenizer.eos_token_id, tokenizer, num_embeddings)
        yield np.array([tokenizer.eos_token_id], np.int32)


def require_embedding(token_id: int | None, tokenizer: PreTrainedTokenizerBase, num_embeddings: int | None) -> None:
    """Refuse a token for which the model has no embedding. A tokenizer may have more tokens, if they do not occur.

    Raises:
        UserError: the token is beyond the embeddings ("setting").
    """
    if token_id is None or num_embeddings is None or token_id < num_embeddings:
        return
    raise UserError(
        f"The tokenizer produces token {token_id} ('{tokenizer.convert_ids_to_tokens(token_id)}'), but the model has "
        f"embeddings for {num_embeddings} tokens only. Use the model's own tokenizer, or remove this token's text from "
        "the corpus.",
        "setting",
        "tokenizer",
    )


def _why_none(corpus: Corpus, length: int, reading: Reading, joined: bool) -> str:
    name, count, longest = f"corpus '{corpus.spec}' ({corpus.source})", reading.num_documents, reading.longest
    if longest == 0:
        return f"{name}: no tokens in its {count} documents. Name another --corpus, or check --tokenizer."
    has = f"its {count} documents have {longest} tokens, less than" if joined else "no document has"
    rest = "" if joined else f"; the longest of {count} has {longest}"
    return (
        f"{name}: {has} the {length} tokens of a sequence (train_length + max_extra){rest}. "
        "Shorten --train-length or --max-extra, or name a corpus of longer documents."
    )


@dataclass(eq=False)
class WindowPairs(IterableDataset[dict[str, Any]]):
    """The windows of every sequence of a run, in the order of training.

    An item is ``{"windows": [W, train_length], "extra": e, "special": 0 or, with a BOS, 1}``: tokens 0..T-1 of
    a sequence (A) and, with two windows, tokens e..e+T-1 (B). There is one e ~ U{1..max_extra} per optimizer
    step, the same in all its micro-batches and processes. For CLEX an item also has ``clex_t`` and
    ``clex_positions``, drawn for each sequence and shared by its windows.

    Under several processes each one reads the whole stream and takes its share of every micro-batch
    (``dispatch_batches=False``).

    Sequences are cut from the corpus as they are needed. Their order is random: the next one is drawn from a
    buffer and replaced by the next one read. A corpus that fits in the buffer is thus permuted as a whole, and
    stays there, tokenized, for the passes to come. At a corpus's end the next pass begins, in another order.

    Item k depends on the corpus, the tokenizer, the seed and the lengths alone; not on how a step is split, the
    loss, the number of windows or of steps. So baselines read the same tokens, and a resumed run goes on with those
    that are next.

    Raises:
        UserError: documents are to be joined, and the tokenizer has no EOS.
    """

    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    _: KW_ONLY
    train_length: int  # T
    max_extra: int  # the greatest e
    windows: int  # 2, or 1 for window A alone
    steps: int  # of the optimizer
    sequences_per_step: int  # over all micro-batches and processes
    seed: int  # of order, e and what CLEX draws
    # Replaces the first token each window reads, where the tokenizer prepends it by default. It is no target, and
    # window B's first position, which then ends in BOS, is not compared with A's.
    bos_token_id: int | None
    cross_documents: bool = False  # join documents with EOS
    num_embeddings: int | None = None  # tokens that the model has an embedding for; None if that is not known
    # For CLEX, draws the t and the positions [T] of one sequence; items then have ``clex_t`` and ``clex_positions``.
    positions: Callable[[np.random.Generator], tuple[int, Tensor]] | None = None
    reading: Reading = field(default_factory=Reading, init=False)  # what the first pass has read so far

    def __post_init__(self) -> None:
        if self.cross_documents and self.tokenizer.eos_token_id is None:
            raise UserError(
                "--cross-documents joins documents with EOS, and the tokenizer has none. "
                "Omit it, or use a tokenizer with an EOS token.",
                "setting",
                "cross_documents",
            )
        self.sequence_length = self.train_length + self.max_extra
        self.extras = np.random.default_rng([self.seed, 1]).integers(1, self.max_extra, size=self.steps, endpoint=True)

    def __len__(self) -> int:
        return len(self.extras) * self.sequences_per_step

    def check(self) -> None:
        """Read the corpus until the first sequence, to fail before anything heavy is loaded.

        Raises:
            UserError: there is none, or the corpus cannot be read.
        """
        next(self._read(Reading()))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sequences = self._shuffled()
        for step, extra in enumerate(self.extras.tolist()):
            shared = {"extra": extra, "special": int(self.bos_token_id is not None)}
            for index, tokens in enumerate(islice(sequences, self.sequences_per_step)):
                item = {"windows": self._windows(tokens, extra), **shared}
                if self.positions is not None:
                    generator = np.random.default_rng([self.seed, 2, step, index])
                    item["clex_t"], item["clex_positions"] = self.positions(generator)
                yield item

    def _windows(self, tokens: NDArray[np.int32], extra: int) -> Tensor:
        starts = (0, extra)[: self.windows]
        windows = np.stack([tokens[start : start + self.train_length] for start in starts])
        if self.bos_token_id is not None:
            windows[:, 0] = self.bos_token_id
        return torch.from_numpy(windows).long()  # [W, T]

    def _shuffled(self) -> Iterator[NDArray[np.int32]]:
        """Yield sequences [T + max_extra] without end."""
        order = np.random.default_rng([self.seed, 0])
        capacity = max(1, min(BUFFER_SEQUENCES, BUFFER_TOKENS // self.sequence_length))
        self.reading = reading = Reading()
        while True:
            buffer: list[NDArray[np.int32]] = []
            for tokens in self._read(reading):
                if len(buffer) < capacity:
                    buffer.append(tokens)
                    continue
                place = order.integers(capacity)
                yield buffer[place]
                buffer[place] = tokens
            while True:
                yield from (buffer[place] for place in order.permutation(len(buffer)))
                if reading.num_sequences > capacity:
                    break
            reading = Reading()  # the first one keeps its record

    def _read(self, reading: Reading) -> Iterator[NDArray[np.int32]]:
        return read_sequences(
            self.corpus,
            self.tokenizer,
            self.sequence_length,
            reading,
            cross_documents=self.cross_documents,
            num_embeddings=self.num_embeddings,
        )


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor | int]:
    """Put all windows A, then all windows B, on the batch axis: items of [W, T] → [W·B, T].

    ``clex_t`` and ``clex_positions`` have a row per window too, the same for the windows of a sequence: int64 [W·B]
    and [W·B, T]. The rest is the same in all items and is passed on.

    There is no ``labels``: targets are the inputs, shifted, and without it no version of the Trainer rescales
    the loss by a token count of its own.
    """
    batch = dict(items[0])
    windows = torch.stack([item["windows"] for item in items], dim=1)  # [W, B, T]
    del batch["windows"]
    if "clex_t" in batch:
        batch["clex_t"] = torch.tensor([item["clex_t"] for item in items]).repeat(len(windows))  # [W·B]
        positions = torch.stack([item["clex_positions"] for item in items])  # [B, T]
        batch["clex_positions"] = positions.repeat(len(windows), 1)  # [W·B, T]
    return {"input_ids": windows.flatten(0, 1)} | batch  # [W·B, T]


def default_bos(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id the tokenizer prepends to a text by default, if it does."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None and special_tokens_before(tokenizer)[:1] == [bos] else None
