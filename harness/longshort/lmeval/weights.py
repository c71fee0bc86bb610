"""A checkpoint or adapter that lacks weights is refused: transformers and PEFT make up random ones and only say so."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator
from typing import Any

from transformers import PreTrainedModel

from longshort.errors import UserError

MISSING_FROM_ADAPTER = "missing adapter keys"  # in the warning of PEFT


@contextlib.contextmanager
def no_random_weights() -> Iterator[None]:
    """Let every model that is loaded meanwhile have all its weights, whoever loads it.

    The lists come from transformers' own ``output_loading_info``. What it logs is no help: TRANSFORMERS_VERBOSITY
    may silence it, and weights that several layers lack share a line.

    Raises:
        UserError: weights are missing; the first is named.
    """
    before = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], *arguments: Any, **options: Any) -> Any:
        is_asked_for = options.pop("output_loading_info", False)
        loaded = before.__func__(cls, *arguments, output_loading_info=True, **options)
        model, info = loaded
        name = arguments[0] if arguments else options.get("pretrained_model_name_or_path")
        _refuse(str(name), info["missing_keys"])
        return loaded if is_asked_for else model

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", f".*{MISSING_FROM_ADAPTER}")
            yield
    except UserWarning as warning:
        cause = " ".join(str(warning).split())[:300]
        raise UserError(f"an adapter lacks some of its weights: {cause} Save it again.") from warning
    finally:
        PreTrainedModel.from_pretrained = before


def _refuse(checkpoint: str, missing: Collection[str]) -> None:
    if missing:
        raise UserError(
            f"checkpoint '{checkpoint}' lacks {len(missing)} of its weights, as {min(missing)}: they would be random. "
            "Download or save it again."
        )
