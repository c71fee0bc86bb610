"""Corpora that are datasets of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longshort.corpora.document import Corpus, with_text
from longshort.errors import Kind, UserError

OFFLINE_ADVICE = (
    "Available offline: 'builtin', a path to .txt, .json, .jsonl or .parquet files, "
    "or with HF_HUB_OFFLINE=1 a dataset in the hub's local cache."
)
HUB_NOT_FOUND = {"RepositoryNotFoundError", "RevisionNotFoundError", "DatasetNotFoundError", "HFValidationError"}


def open_hub(spec: str, name: str, config: str | None, split: str, column: str) -> Corpus:
    """Return the corpus of a hub dataset; its commit is asked for now, its rows when they are iterated.

    Args:
        spec: the name the user gave.
        name: OWNER/NAME.

    Raises:
        UserError: the dataset does not exist, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, constants

    revision = None
    if not constants.HF_HUB_OFFLINE:
        try:
            revision = HfApi().dataset_info(name, timeout=30).sha
        except Exception as error:  # the hub client's transports share no base class from version to version
            raise _hub_error(spec, name, error) from error

    def rows() -> Iterator[tuple[str, str | None]]:
        import datasets

        # Offline only a complete, cached copy can be opened; online a stream spares the download.
        try:
            found = datasets.load_dataset(
                name, config, split=split, revision=revision, streaming=not constants.HF_HUB_OFFLINE
            )
            for number, row in enumerate(found):
                yield f"{name}:{split}:{number}", _text_of(row, spec, column)
        except UserError:
            raise
        except Exception as error:  # datasets passes on whatever its transports and readers raise
            raise _hub_error(spec, name, error) from error

    return Corpus(spec, f"https://huggingface.co/datasets/{name}", revision, split, lambda: with_text(spec, rows()))


def _text_of(row: dict[str, Any], spec: str, column: str) -> str | None:
    if column in row and isinstance(row[column], str | None):
        text: str | None = row[column]
        return text
    raise UserError(
        f"Cannot read corpus '{spec}': it has no text column '{column}', only {', '.join(map(str, row))}. "
        "Name one as hf:OWNER/NAME:CONFIG:SPLIT:COLUMN.",
        "data",
    )


def _hub_error(spec: str, name: str, error: Exception) -> UserError:
    cause = next(iter(str(error).strip().splitlines()), "no answer").rstrip(".")
    names = {cls.__name__ for cls in type(error).__mro__}  # of a client that need not be imported to recognize them
    kind: Kind = "gated" if "GatedRepoError" in names else "not_found" if names & HUB_NOT_FOUND else "hub"
    return UserError(f"Cannot read corpus '{spec}' (hub dataset {name}): {cause}. {OFFLINE_ADVICE}", kind)
