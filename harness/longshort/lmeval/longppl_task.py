"""The lm-eval task `longshort_longppl`: perplexity of the tokens that need a long context."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lm_eval.api.instance import Instance
from typing_extensions import override

from longshort.corpora import fingerprint
from longshort.errors import UserError
from longshort.lmeval.longppl import LONGPPL, METRICS, KeyTokenJob
from longshort.lmeval.longppl_pooling import pooled_perplexity
from longshort.lmeval.longppl_spans import SELF, KeySpans, is_self_evaluated, read_key_spans
from longshort.lmeval.measure import Measured
from longshort.lmeval.tasks import DocumentTask
from longshort.lmeval.token_values import TaskValues
from longshort.scoring.key_tokens import Criterion


class LongPPLTask(DocumentTask):
    """`longshort_longppl`: perplexity of key tokens by length, and how many there are.

    Without key spans, or with ones that cannot be used, it has no documents: a glob such as ``longshort_*`` also
    matches it, and other tasks of the run are evaluated.
    """

    OUTPUT_TYPE = LONGPPL
    TASK = LONGPPL
    METRICS = METRICS

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        spec, metadata = self.settings.key_spans, self.config.metadata or {}
        self._spans, self._problem = KeySpans({}, {}), None if spec else _no_key_spans()
        if spec == SELF:
            evaluator = {
                name: metadata[name] for name in ("pretrained", "revision", "peft", "delta") if metadata.get(name)
            }
            self._spans = KeySpans({}, {"format": SELF, "evaluator": evaluator, "criterion": asdict(Criterion())})
        elif spec is not None:
            try:
                self._spans = read_key_spans(spec, self.corpus, self.documents)
            except UserError as error:  # other tasks of the run may go on
                self._problem = error
        if self._problem is not None:
            self.documents = []

    @property
    @override
    def cannot_run(self) -> UserError | None:
        return self._problem

    @override
    def construct_requests(self, doc: dict[str, Any], ctx: str, **arguments: Any) -> Instance:
        document = self.documents[doc["index"]]
        job = KeyTokenJob(document, doc["index"], self.settings, self._spans.documents.get(fingerprint([document])))
        return Instance(
            request_type=self.OUTPUT_TYPE,
            doc=doc,
            arguments=(doc["sha256"], job),
            idx=0,
            metadata=arguments["metadata"],
        )

    @override
    def process_results(self, doc: dict[str, Any], results: list[Measured]) -> dict[str, Any]:
        """Return one document's values; `longppl@L` is its mean log-likelihood and its number of key tokens."""
        values: dict[str, Any] = dict(super().process_results(doc, results))
        for name, value in values.items():
            metric, _, length = name.partition("@")
            if metric == "longppl":
                values[name] = value, values[f"key_tokens@{length}"]
        return values

    @override
    def aggregation(self) -> dict[str, Callable[[list[Any]], float]]:
        """`pooled_perplexity` of log-likelihoods with numbers of key tokens, `mean` of the numbers."""
        pooled = {name: pooled_perplexity for name in self.metrics() if name.startswith("longppl")}
        return super().aggregation() | pooled

    @override
    def token_values(self) -> TaskValues | None:
        """None: most tokens of a document are not scored."""
        return None

    @override
    def scored(self) -> dict[str, Any]:
        """Also record the key spans: their file and its hash, evaluator, corpus and criterion."""
        is_own = is_self_evaluated(self._spans.record, self.config.metadata or {})
        record = {"key_spans": self._spans.record | {"self_evaluated": is_own}} if self._spans.record else {}
        return super().scored() | record


def _no_key_spans() -> UserError:
    return UserError(
        f"{LONGPPL} needs key tokens. Set key_spans to a file that 'longshort key-spans' made with an evaluator model, "
        "to LongPPL's key_text, or to self.",
        "setting",
        "key_spans",
    )
