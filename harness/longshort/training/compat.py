"""Every patch of another library that training needs; those of an evaluation are in `longshort.lmeval.compat`.

`longshort.training.extension.modeling_clex` also registers its RoPE type with transformers when it is imported: it is
copied into checkpoints, where it has to work without longshort.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def no_loading_report() -> Iterator[None]:
    """Load weights without the table that transformers logs of missing and mismatched ones.

    Versions: transformers 5.23.
    Why: the same weights are reported on one line, as a `UserError`.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
