"""`UserError`: the exception for everything a user can correct, with a category that code can test."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Literal

Kind = Literal[
    "usage",  # the command line cannot be understood; exit code 2
    "setting",  # a setting has a wrong value, or contradicts another
    "not_found",  # no such file, folder, model or revision
    "data",  # a corpus, results or prediction file is damaged or has another format
    "text",  # no document is long enough
    "broken",  # a checkpoint's weights, config or tokenizer are missing, damaged or unknown to transformers
    "unsupported",  # the architecture cannot be measured or trained this way
    "length",  # the architecture cannot address the requested lengths
    "non_finite",  # logits or losses are not finite
    "gated",  # the hub requires access to be granted
    "no_trust_remote_code",  # the checkpoint brings code of its own
    "hub",  # the hub did not answer
    "out_of_memory",  # main memory or a GPU's memory does not suffice
    "device",  # the device is not available
    "dependency",  # a library is missing or has an unsuitable version
    "versions",  # a worker has other library versions than the driver
    "timeout",  # it took longer than allowed
    "killed",  # a process was killed
    "unwritable",  # a file or folder cannot be written
    "conflict",  # what is in the output folder belongs to another run
    "cluster",  # the Ray cluster cannot be reached or has been lost
    "incomplete",  # the work was done, but some values are missing
    "error",  # anything else
]


class UserError(Exception):
    """Something the user can correct.

    Args:
        message: one line: what failed, why, and what to do.
        kind: the category. Code decides by it, never by the words of the message.
        field: the setting or manifest field that is wrong, where there is one.
    """

    def __init__(self, message: str, kind: Kind, field: str | None = None) -> None:
        super().__init__(message, kind, field)  # all of them, so that it can be pickled
        self.message = message
        self.kind: Kind = kind
        self.field = field

    def __str__(self) -> str:
        return self.message

    @property
    def exit_code(self) -> int:
        """2 for wrong usage, else 1."""
        return 2 if self.kind == "usage" else 1


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its class where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def listed(names: Sequence[object], most: int = 3) -> str:
    """Return the first of the names for a message, as ``a, b, c and 4 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def one_line_for_user_errors() -> None:
    """Print only the message of a `UserError` that nothing catches, without a traceback."""
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, UserError):
            print(f"longshort: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
