"""What longshort's lm-eval tasks share: a config that is kept, and one process that aggregates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from longshort.errors import one_line_for_user_errors
from longshort.lmeval import bootstrap, requests

requests.register()
bootstrap.register()
one_line_for_user_errors()  # the stock lm_eval command lets exceptions through to the interpreter


class LongShortTask(Task):
    """No few-shot examples and one request per document.

    In data parallel every process builds all requests, the models split them (`requests.share`), and the first
    process alone aggregates. lm-eval would let each aggregate its share, in another order than one process does,
    and lose metrics that the first one lacks.
    """

    VERSION = "1.0"
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        # Not Task.__init__: it hands the config over as one positional argument, which loses it.
        known = {key: value for key, value in config.items() if key in TaskConfig.__dataclass_fields__}
        kept = dict(config.get("metadata") or {}) | dict(metadata)
        self._config = TaskConfig(**known | {"output_type": self.OUTPUT_TYPE, "metadata": kept})
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self._instances: list[Instance] | None = None

    def has_training_docs(self) -> bool:
        """No."""
        return False

    def has_validation_docs(self) -> bool:
        """No."""
        return False

    def has_test_docs(self) -> bool:
        """Yes."""
        return True

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """All documents for the first process and none for the others."""
        if rank == 0:
            yield from super().doc_iterator(rank=0, limit=limit, world_size=1, samples=samples)

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **_: Any) -> None:
        """One request per document, on every process. No cache: lm-eval's key leaves the metadata out."""
        self._instances = [
            self.construct_requests(doc, self.doc_to_text(doc), metadata=(self.config.task, doc_id, 1))
            for doc_id, doc in self.doc_iterator(limit=limit, samples=samples)
        ]

    def doc_to_text(self, doc: dict[str, Any]) -> str:
        """There is no prompt."""
        return ""

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """There is no target."""
        return ""

    def metrics(self) -> list[str]:
        """All metrics that the task can give."""
        raise NotImplementedError

    def aggregation(self) -> dict[str, Callable[[list[float]], float]]:
        """By metric: `mean`, for which lm-eval computes standard errors, or `bootstrap.perplexity`."""
        return dict.fromkeys(self.metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        """By the metric's name without its length or bucket."""
        return {metric: metric.partition("@")[0] in self.HIGHER_IS_BETTER for metric in self.metrics()}

    def dump_config(self) -> dict[str, Any]:
        """The config with, under `metadata.scored`, what was scored and what was left out."""
        self._config.metadata["scored"] = self.scored()
        return dict(super().dump_config())

    def scored(self) -> dict[str, Any]:
        """What was scored; called once, after all documents were."""
        raise NotImplementedError
