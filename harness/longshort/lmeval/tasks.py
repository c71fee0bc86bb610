"""The lm-eval tasks of text corpora that `tasks/*.yaml` name by class."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

from lm_eval.api.instance import Instance

import longshort
from longshort.corpora import Corpus, Document, fingerprint, open_corpus, select
from longshort.lmeval import compat, measure, requests
from longshort.lmeval.base import LongShortTask
from longshort.lmeval.bootstrap import perplexity
from longshort.lmeval.measure import Gap, Measured
from longshort.lmeval.token_values import TaskValues, with_all_draws
from longshort.settings import settings_from

logger = logging.getLogger(__name__)

MODEL = ("pretrained", "revision", "dtype", "peft", "delta", "tokenizer")  # arguments that token files record


@lru_cache(maxsize=4)
def _read(spec: str, num_docs: int, max_length: int) -> tuple[Corpus, list[Document]]:
    """Return the documents to score; the tasks of a run share them."""
    corpus = open_corpus(spec)
    documents = select(corpus, num_docs, max_length)
    if len(documents) < num_docs:
        logger.warning("corpus '%s' has only %d of the %d requested documents", spec, len(documents), num_docs)
    return corpus, documents


class DocumentTask(LongShortTask):
    """A task that scores whole documents, through a request type of longshort's."""

    OUTPUT_TYPE = requests.REQUEST
    TASK: ClassVar[str]  # its name in `requests.METRICS`
    METRICS: ClassVar[tuple[str, ...]] = ()  # that it has at every length
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ("agreement", "accuracy_tail")

    def __init__(self, config: dict[str, Any]) -> None:
        compat.install()  # the stock lm_eval command calls nothing else of longshort's
        self.settings = settings_from(config.get("metadata") or {})
        self.corpus, self.documents = _read(self.settings.corpus, self.settings.num_docs, self.settings.lengths[-1] + 1)
        super().__init__(config, self.settings.to_metadata())
        self._measured: dict[int, Measured] = {}

    def test_docs(self) -> list[dict[str, Any]]:
        """Return what lm-eval logs of each document; its hash identifies the text."""
        return [
            {
                "index": index,
                "name": document.name,
                "bytes": document.num_bytes,
                "sha256": fingerprint([document]),
            }
            for index, document in enumerate(self.documents)
        ]

    def construct_requests(self, doc: dict[str, Any], ctx: str, **arguments: Any) -> Instance:
        """Request the measurements of one document."""
        job = requests.Job(self.documents[doc["index"]], doc["index"], self.settings, self.TASK)
        return Instance(
            request_type=self.OUTPUT_TYPE,
            doc=doc,
            arguments=(doc["sha256"], job),
            idx=0,
            metadata=arguments["metadata"],
        )

    # ---- metrics

    def process_results(self, doc: dict[str, Any], results: list[Measured]) -> dict[str, float]:
        """Return one document's value of each metric; a metric that could not be measured is absent."""
        self._measured[doc["index"]] = results[0]
        return results[0].values

    def metrics(self) -> list[str]:
        """Return every metric at every length."""
        return [f"{metric}@{length}" for metric in self.METRICS for length in self.settings.lengths]

    def aggregation(self) -> dict[str, Callable[[list[float]], float]]:
        """`perplexity` of mean log-likelihoods, else `mean`."""
        return super().aggregation() | {name: perplexity for name in self.metrics() if name.startswith("ppl")}

    def scored(self) -> dict[str, Any]:
        """Return the documents and their hash, how many have each metric, and which metrics were skipped and why."""
        return self.scored_documents(self._measured)

    def scored_documents(self, measured: Mapping[int, Measured]) -> dict[str, Any]:
        """As `scored`, of what was measured of each document, by its index."""
        scored = [self.documents[index] for index, answer in sorted(measured.items()) if answer.values]
        counts = Counter(metric for answer in measured.values() for metric in answer.values)
        gaps: dict[tuple[str, Gap], list[str]] = defaultdict(list)
        for index, answer in sorted(measured.items()):
            for metric, gap in answer.gaps.items():
                gaps[metric, gap].append(self.documents[index].name)
        passes = sorted({answer.passes for answer in measured.values() if answer.passes})
        batch_sizes = {answer.batch_size for answer in measured.values()} - {0}
        return (
            self._corpus_of(scored)
            | {
                "names": [document.name for document in scored],
                "documents": {metric: counts[metric] for metric in self.metrics() if metric in counts},
                "left_out": [
                    {"metric": metric, "kind": gap.kind, "reason": gap.reason, "count": len(names), "names": names}
                    for (metric, gap), names in gaps.items()
                ],
                "batch_sizes": sorted(batch_sizes, reverse=True),  # documents that were read together
                "longshort": longshort.__version__,
            }
            | ({"passes": " and ".join(passes)} if passes else {})
        )

    def _corpus_of(self, documents: list[Document]) -> dict[str, Any]:
        source = {"source": self.corpus.source, "revision": self.corpus.revision, "split": self.corpus.split}
        return source | {"sha256": fingerprint(documents)}

    def token_values(self) -> TaskValues | None:
        """Return what was measured of each token of the documents."""
        if not self.settings.save_tokens:
            return None
        windows = {
            index: with_all_draws(answer.windows, answer.second_lengths)
            for index, answer in sorted(self._measured.items())
            if answer.windows
        }
        documents = {index: self.documents[index] for index in windows}
        passes = sorted({answer.passes for answer in self._measured.values() if answer.passes})
        metadata = self.config.metadata or {}
        return TaskValues(
            task=self.TASK,
            settings=self.settings,
            model={name: metadata[name] for name in MODEL if name in metadata},
            corpus=self._corpus_of(list(documents.values())),
            passes=" and ".join(passes) or None,
            documents=documents,
            windows=windows,
        )


class PerplexityTask(DocumentTask):
    """`longshort_perplexity`: perplexity and bits per byte by length, of prefixes and of fixed targets.

    Of the fixed targets also the misalignment between all lengths, which the same passes give.
    """

    TASK = requests.PERPLEXITY
    METRICS = measure.PREFIX_METRICS + measure.TAIL_METRICS

    def metrics(self) -> list[str]:
        """Return every metric at every length, and the matrices between lengths."""
        matrices = (measure.between(name, self.settings.lengths) for name in measure.MATRIX_METRICS)
        return super().metrics() + [metric for matrix in matrices for metric, _, _ in matrix]


class MisalignmentTask(DocumentTask):
    """`longshort_misalignment`: how the next-token distribution changes with the length of the context."""

    TASK = requests.MISALIGNMENT
    METRICS = measure.PAIR_METRICS + measure.FLOOR_METRICS
