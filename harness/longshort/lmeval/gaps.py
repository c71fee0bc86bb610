"""Warnings of what could not be measured."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol

from longshort.corpora import Document
from longshort.errors import listed
from longshort.lmeval.measure import Measured

logger = logging.getLogger(__name__)


class HasDocument(Protocol):
    """A job of this or another request type."""

    @property
    def document(self) -> Document:
        """What is read."""


def warn_of_gaps(task: str, answers: Sequence[tuple[HasDocument, Measured]]) -> None:
    """Log one line per reason: which metrics were skipped, for how many documents and which."""
    by_reason: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # reason → metric → documents
    for job, answer in answers:
        for metric, gap in answer.gaps.items():
            by_reason[gap.reason][metric].append(job.document.name)
    for reason, metrics in by_reason.items():
        for names in sorted(set(map(tuple, metrics.values()))):
            skipped = [metric for metric, documents in metrics.items() if tuple(documents) == names]
            logger.warning(
                "%s: skipped %s for %d of %d documents (%s): %s",
                task,
                ", ".join(skipped),
                len(names),
                len(answers),
                listed(names),
                reason,
            )
