"""LongBench-E as lm-eval tasks: 13 datasets, 6 categories, and the group over them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.config.group import AggMetricConfig
from typing_extensions import override

import longshort
from longshort.errors import UserError
from longshort.lmeval import compat
from longshort.lmeval.base import LongShortTask
from longshort.lmeval.table import GroupLabels, label_group
from longshort.longbench.data import read_rows
from longshort.longbench.generation import DATASET_KEY, LongBenchRequest
from longshort.longbench.official import Score, means
from longshort.longbench.prompts import prompt, prompt_limit, tokenizer_and_window, truncate_middle
from longshort.longbench.scores import (
    BUCKETS,
    CATEGORIES,
    DATASETS,
    LONGBENCH,
    LONGBENCH_PREFIX,
    CodeRatio,
    bucket,
    score_row,
    task_of,
)
from longshort.settings import EvalSettings, settings_from
from longshort.settings.definition import Role, names_of

logger = logging.getLogger(__name__)

CODE_RATIO: CodeRatio = "difflib"  # the other one: score-longbench --code-ratio, on logged samples
COLUMNS = {"all": "score"} | {name: f"score@{name}" for name in BUCKETS}
ABOUT_CHECKPOINT = names_of(EvalSettings, Role.ABOUT)
OF_CORPUS_TASKS = [*names_of(EvalSettings, Role.NUMBERS), "save_tokens"]
LABELS = GroupLabels(
    "LongBench-E, percent",
    {"score": "mean of categories", "score_datasets": "mean of datasets"},
    LONGBENCH_PREFIX,
)


class LongBenchTask(LongShortTask):
    """One dataset; `dataset_name` in the YAML names it."""

    OUTPUT_TYPE = "generate_until"
    HIGHER_IS_BETTER = ("score",)

    def __init__(self, config: dict[str, Any]) -> None:
        compat.install()  # the stock lm_eval command calls nothing else of longshort's
        self.dataset_name = str(config["dataset_name"])
        self.official = DATASETS[self.dataset_name]
        metadata = dict(config.get("metadata") or {})
        location = metadata.get("longbench_dir")
        self.data = read_rows(self.dataset_name, str(location) if location else None)
        for problem in self.data.problems:
            logger.warning(problem)
        self.model = metadata
        self.truncated = 0
        self._requested: list[int] = []
        # The corpus and lengths that other tasks of this run are given do not concern this one.
        about = settings_from({key: metadata[key] for key in ABOUT_CHECKPOINT if key in metadata}).to_metadata()
        kept = {key: value for key, value in metadata.items() if key not in OF_CORPUS_TASKS}
        kept |= {key: about[key] for key in ABOUT_CHECKPOINT if key in about} | {"corpus": "longbench_e"}
        settings = {"until": [], "max_gen_toks": self.official.max_new_tokens, "do_sample": False}
        super().__init__(dict(config) | {"metadata": kept, "generation_kwargs": settings}, {})

    def test_docs(self) -> list[dict[str, Any]]:
        """Return the fields of official prediction files; the context is in the prompt, which lm-eval logs."""
        return [
            {
                "index": index,
                DATASET_KEY: self.dataset_name,
                "_id": row.get("_id"),
                "answers": row["answers"],
                "all_classes": row.get("all_classes"),
                "length": row["length"],
            }
            for index, row in enumerate(self.data.rows)
        ]

    @override
    def doc_to_target(self, doc: dict[str, Any]) -> str:
        return str(doc["answers"][0])

    def build_all_requests(
        self,
        *,
        limit: int | None = None,
        samples: list[int] | None = None,
        system_instruction: str | None = None,
        apply_chat_template: bool = False,
        chat_template: Callable[[list[dict[str, str]]], str] | None = None,
        **_: Any,
    ) -> None:
        """Build prompts, truncated in the middle and then, if the protocol says so, put into the chat template."""
        tokenizer, window = tokenizer_and_window(self.model)
        limit_of_prompt = prompt_limit(window, self.official.max_new_tokens) if window else 0
        settings = dict(self.config.generation_kwargs or {})
        self._instances, self._requested, self.truncated = [], [], 0
        for doc_id, doc in self.doc_iterator(limit=limit, samples=samples):
            text = prompt(self.dataset_name, self.data.rows[doc["index"]])
            if limit_of_prompt:
                text, is_truncated = truncate_middle(text, tokenizer, limit_of_prompt)
                self.truncated += is_truncated
            if apply_chat_template and chat_template and self.official.chat:
                system = [{"role": "system", "content": system_instruction}] if system_instruction else []
                text = chat_template([*system, {"role": "user", "content": text}])
            self._requested.append(doc["index"])
            self._instances.append(
                LongBenchRequest(
                    request_type="generate_until",
                    doc=doc,
                    arguments=(text, dict(settings)),
                    idx=0,
                    metadata=(self.config.task, doc_id, 1),
                )
            )
        about, count = f"LongBench-E {self.dataset_name}", len(self._instances)
        if count < self.official.num_rows:  # --limit, or a part of the data
            logger.warning("%s: %d of the %d official rows are evaluated", about, count, self.official.num_rows)
        if self.truncated:
            logger.warning("%s: %d of %d prompts truncated to %d tokens", about, self.truncated, count, limit_of_prompt)

    def construct_requests(self, doc: dict[str, Any], ctx: str, **arguments: Any) -> Instance:
        """Not used: see `build_all_requests`."""
        raise NotImplementedError

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        """Return the score in percent, once for all rows and once for the row's bucket of length."""
        value = 100 * score_row(self.dataset_name, results[0], doc["answers"], doc["all_classes"], CODE_RATIO)
        return {"score": value, f"score@{bucket(doc['length'])}": value}

    def metrics(self) -> list[str]:
        """Return the names of the score of all rows and of each bucket."""
        return list(COLUMNS.values())

    def scored(self) -> dict[str, Any]:
        """Return the file and its hash, rows per bucket and officially, truncated prompts, and skipped rows."""
        buckets = Counter(f"score@{bucket(self.data.rows[index]['length'])}" for index in self._requested)
        return {
            "source": self.data.source,
            "revision": self.data.revision,
            "sha256": self.data.sha256,
            "documents": {"score": len(self._requested), **buckets},
            "official_documents": self.official.num_rows,
            **({"code_ratio": CODE_RATIO} if self.official.category == "code" else {}),
            "truncated_prompts": self.truncated,
            "left_out": [{"kind": "data", "reason": problem} for problem in self.data.problems],
            "longshort": longshort.__version__,
        }

    @property
    def problems(self) -> list[str]:
        """Whether rows were skipped; the log and `scored` say which."""
        return [f"{len(self.data.problems)} rows of {self.config.task} were skipped"] if self.data.problems else []


class LongBenchGroup(Group):
    """Means over the datasets of a category; over all datasets, the mean of categories and the plain mean.

    lm-eval's own groups compute only the mean over all tasks below them.
    """

    def __init__(self, name: str, alias: str, children: list[Any]) -> None:
        metrics = [AggMetricConfig(metric=metric, weight_by_size=False) for metric in COLUMNS.values()]
        super().__init__(name=name, alias=alias, aggregate_metric_list=metrics, metadata={"version": "1.0"})
        for child in children:
            self.add(child)

    def aggregate(self, task_metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the group's results: values, standard errors, and the number of rows of each (`sample_count`)."""
        by_dataset = {task.dataset_name: _columns(task, task_metrics) for task in self.get_all_tasks()}
        categories = [
            {name: columns for name, columns in by_dataset.items() if DATASETS[name].category == category}
            for category in CATEGORIES
        ]
        tables = {"score": means({str(index): means(members) for index, members in enumerate(categories) if members})}
        if self.get_all_groups():
            tables["score_datasets"] = means(by_dataset)
        row: dict[str, Any] = {"name": self.name, "alias": self.alias, "sample_count": {}}
        for name, scores in tables.items():
            for column, score in scores.items():
                metric = COLUMNS[column].replace("score", name)
                row[f"{metric},none"] = score.value
                row[f"{metric}_stderr,none"] = "N/A" if score.stderr is None else score.stderr
                row["sample_count"][f"{metric},none"] = score.n
        row["sample_len"] = row["sample_count"].get("score,none", 0)
        return row


class LongBenchE(LongBenchGroup):
    """`longshort_longbench_e`: the six categories and their datasets."""

    def __init__(self, config: dict[str, Any]) -> None:
        tasks, self.unreadable = _read_tasks(config)
        groups = []
        for category in CATEGORIES:
            members = [task for dataset, task in tasks.items() if DATASETS[dataset].category == category]
            if members:
                groups.append(LongBenchGroup(task_of(category), category, members))
        super().__init__(LONGBENCH, LONGBENCH, groups)
        label_group(LONGBENCH, LABELS)
        if not groups:
            self.aggregate_metric_list = None  # no empty table of groups

    @property
    def problems(self) -> list[str]:
        """How many datasets could not be read; the log says which and why."""
        count = len(self.unreadable)
        return [f"{count} of {len(DATASETS)} LongBench-E datasets could not be read"] if count else []

    def aggregate(self, task_metrics: Mapping[str, Any]) -> dict[str, Any]:
        """As for any group, but without data it raises an error if no other task was measured.

        The glob ``longshort_*`` matches this group too, and must not fail for users who want the other tasks.

        Raises:
            UserError: no dataset could be read and no other task was measured.
        """
        if not len(self) and not task_metrics:
            raise self.unreadable[0]
        return super().aggregate(task_metrics)


def _read_tasks(config: dict[str, Any]) -> tuple[dict[str, LongBenchTask], list[UserError]]:
    """The tasks of all datasets that can be read, and why the others cannot; the latter is logged as well."""
    tasks: dict[str, LongBenchTask] = {}
    unreadable: list[UserError] = []
    for dataset in DATASETS:
        try:
            tasks[dataset] = LongBenchTask(
                {**config, "task": task_of(dataset), "dataset_name": dataset, "task_alias": dataset}
            )
        except UserError as error:
            unreadable.append(error)
    if not tasks:
        logger.error("%s is skipped: %s", LONGBENCH, unreadable[0])
    else:
        for reason in unreadable:
            logger.warning("skipped in %s: %s", LONGBENCH, reason)
    return tasks, unreadable


def _columns(task: LongBenchTask, task_metrics: Mapping[str, Any]) -> dict[str, Score]:
    metrics = task_metrics.get(task.task_name, {})
    counts = task.scored()["documents"]
    columns = {}
    for column, metric in COLUMNS.items():
        if f"{metric},none" in metrics:
            stderr = metrics.get(f"{metric}_stderr,none")
            error = float(stderr) if isinstance(stderr, int | float) else None
            columns[column] = Score(metrics[f"{metric},none"], error, counts[metric])
    return columns
