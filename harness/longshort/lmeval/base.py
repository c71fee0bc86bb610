"""What longshort's lm-eval tasks share: a config that is kept, and one process that aggregates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble
from typing_extensions import override

from longshort.errors import UserError
from longshort.lmeval.token_values import TaskValues


def is_missing_setting(problem: UserError) -> bool:
    """Whether a task cannot run for want of a setting, and not because the setting's value cannot be used."""
    return problem.kind == "setting"


class LongShortTask(Task):
    """A task without few-shot examples and with one request per document.

    A subclass calls `compat.install` first in its constructor. In data parallel every process builds all requests,
    the models share them (`parallel.share`), and the first process alone aggregates. lm-eval would let each process
    aggregate its share, in another order than a single process does, and lose metrics that the first one lacks.
    """

    VERSION = "1.0"
    HIGHER_IS_BETTER: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Mapping[str, Any], metadata: Mapping[str, Any]) -> None:
        # lm-eval 0.4.13's Task.__init__ passes the config as one positional argument, which loses it.
        known = {key: value for key, value in config.items() if key in TaskConfig.__dataclass_fields__}
        kept = dict(config.get("metadata") or {}) | dict(metadata)
        self._config = TaskConfig(**known | {"output_type": self.OUTPUT_TYPE, "metadata": kept})
        self._filters = [build_filter_ensemble("none", [["take_first", None]])]
        self._instances: list[Instance] | None = None

    @override
    def has_training_docs(self) -> bool:
        return False

    @override
    def has_validation_docs(self) -> bool:
        return False

    @override
    def has_test_docs(self) -> bool:
        return True

    def doc_iterator(
        self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: list[int] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield all documents for the first process and none for the others."""
        if rank == 0:
            yield from super().doc_iterator(rank=0, limit=limit, world_size=1, samples=samples)

    def build_all_requests(self, *, limit: int | None = None, samples: list[int] | None = None, **_: Any) -> None:
        """Build one request per document, on every process, without lm-eval's cache: its key omits the metadata."""
        self._instances = [
            self.construct_requests(doc, self.doc_to_text(doc), metadata=(self.config.task, doc_id, 1))
            for doc_id, doc in self.doc_iterator(limit=limit, samples=samples)
        ]

    @override
    def doc_to_text(self, doc: dict[str, Any]) -> str:
        return ""

    @override
    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return ""

    def metrics(self) -> list[str]:
        """Return the names of all metrics that the task can measure."""
        raise NotImplementedError

    def aggregation(self) -> dict[str, Callable[[list[float]], float]]:
        """By metric: `mean`, for which lm-eval computes standard errors, or `bootstrap.perplexity`."""
        return dict.fromkeys(self.metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        """By metric; decided by its name without the length or bucket."""
        return {metric: metric.partition("@")[0] in self.HIGHER_IS_BETTER for metric in self.metrics()}

    def dump_config(self) -> dict[str, Any]:
        """Return the config with, under `metadata.scored`, what was scored and what was skipped."""
        self._config.metadata["scored"] = self.scored()
        return dict(super().dump_config())

    def scored(self) -> dict[str, Any]:
        """Return what was scored; called once, after all documents were."""
        raise NotImplementedError

    def token_values(self) -> TaskValues | None:
        """Return what was measured of each token, with the setting `save_tokens`; called after all documents were."""
        return None

    @property
    def cannot_run(self) -> UserError | None:
        """What is missing or cannot be used: the task is skipped if others run with it, else this is raised."""
        return None

    @property
    def problems(self) -> list[str]:
        """What is wrong with the task's data, one line each, for `evaluate.problems`."""
        return []
