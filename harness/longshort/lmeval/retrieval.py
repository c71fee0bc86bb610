"""The lm-eval task `longshort_retrieval`: whether a model can tell a value that its context holds."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from statistics import fmean
from typing import Any

from lm_eval.api.instance import Instance

from longshort.corpora import fingerprint
from longshort.errors import UserError
from longshort.lmeval.measure import Measured
from longshort.lmeval.retrieval_keys import KEYS
from longshort.lmeval.retrieval_probes import depth_shares
from longshort.lmeval.retrieval_requests import METRICS, RETRIEVAL, ProbeJob, by_document, draw
from longshort.lmeval.tasks import DocumentTask

logger = logging.getLogger(__name__)


class RetrievalTask(DocumentTask):
    """`longshort_retrieval`: key-value sentences in a long text, one of which is asked for at its end.

    lm-eval's documents are the probes: every document of the corpus is the haystack of one probe for each depth, so
    there are `num_docs` · `depths` of them, over which standard errors are taken.
    """

    OUTPUT_TYPE = RETRIEVAL
    TASK = RETRIEVAL
    METRICS = METRICS
    HIGHER_IS_BETTER = ("recall",)

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        settings = self.settings
        if settings.num_needles > len(KEYS):
            raise UserError(
                f"needles={settings.num_needles}: {RETRIEVAL} has {len(KEYS)} different keys. Lower it.",
                "setting",
                "needles",
            )
        if settings.save_tokens:
            logger.warning("save_tokens has no effect on %s, which has no per-token values.", RETRIEVAL)
        self._config.metadata |= {"needles": settings.num_needles, "depths": settings.num_depths}

    def _job(self, index: int) -> ProbeJob:
        document, depth = divmod(index, self.settings.num_depths)
        return ProbeJob(self.documents[document], document, depth, self.settings)

    def test_docs(self) -> list[dict[str, Any]]:
        """Return what lm-eval logs of each probe: its document, depth, key and value; its hash identifies the text."""
        shares = depth_shares(self.settings.num_depths)
        probes = []
        for index, document in enumerate(self.documents):
            about = {"name": document.name, "bytes": document.num_bytes, "sha256": fingerprint([document])}
            for depth, share in enumerate(shares):
                number = index * len(shares) + depth
                probe = draw(self._job(number))
                asked = {"key": probe.asked.key, "value": probe.asked.value} if probe else {}
                probes.append({"index": number, "document": index, "depth": share} | asked | about)
        return probes

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """Return the value that is asked for."""
        return str(doc.get("value", ""))

    def construct_requests(self, doc: dict[str, Any], ctx: str, **arguments: Any) -> Instance:
        """Request the scores of one probe at all lengths."""
        return Instance(
            request_type=self.OUTPUT_TYPE,
            doc=doc,
            arguments=(doc["sha256"], self._job(doc["index"])),
            idx=0,
            metadata=arguments["metadata"],
        )

    def scored(self) -> dict[str, Any]:
        """As of other tasks; `documents` counts probes, and `depths` has the means by length and depth."""
        measured = dict(sorted(self._measured.items()))
        documents = by_document((self._job(index).index, answer) for index, answer in measured.items())
        counts = Counter(metric for answer in measured.values() for metric in answer.values)
        return self.scored_documents(documents) | {
            "documents": {metric: counts[metric] for metric in self.metrics() if metric in counts},
            "depths": self._by_depth(measured),
        }

    def _by_depth(self, measured: dict[int, Measured]) -> list[dict[str, float]]:
        """The mean of each metric and the number of probes, for every length and depth that has values."""
        cells: dict[tuple[int, float], list[Measured]] = defaultdict(list)
        shares = depth_shares(self.settings.num_depths)
        for index, answer in measured.items():
            for length in self.settings.lengths:
                if f"recall_nll@{length}" in answer.values:
                    cells[length, shares[self._job(index).depth]].append(answer)
        return [
            {"length": length, "depth": share}
            | {name: fmean(answer.values[f"{name}@{length}"] for answer in answers) for name in METRICS}
            | {"n": len(answers)}
            for (length, share), answers in sorted(cells.items())
        ]

    def token_values(self) -> None:
        """Nothing: a probe has no per-token values."""
        return
