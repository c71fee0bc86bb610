"""LongBench-E as lm-eval tasks: 13 datasets, 6 categories, and the group over them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.config.group import AggMetricConfig

import longshort
from longshort.errors import UserError
from longshort.lmeval.base import LongShortTask
from longshort.longbench import generation
from longshort.longbench.data import read_rows
from longshort.longbench.official import Score, means
from longshort.longbench.prompts import prompt, prompt_limit, truncate_middle
from longshort.longbench.scores import (
    BUCKETS,
    CATEGORIES,
    DATASETS,
    LONGBENCH,
    LONGBENCH_PREFIX,
    bucket,
    score_row,
)
from longshort.settings import EvalSettings, settings_from
from longshort.settings.definition import Role, names_of

logger = logging.getLogger(__name__)

generation.register()

COLUMNS = {"all": "score"} | {name: f"score@{name}" for name in BUCKETS}
ABOUT_CHECKPOINT = names_of(EvalSettings, Role.ABOUT)


class LongBenchTask(LongShortTask):
    """One dataset; the YAML's `dataset_name` says which."""

    OUTPUT_TYPE = "generate_until"
    HIGHER_IS_BETTER = ("score",)

    def __init__(self, config: dict[str, Any]) -> None:
        self.dataset_name = str(config["dataset_name"])
        self.official = DATASETS[self.dataset_name]
        metadata = dict(config.get("metadata") or {})
        location = metadata.get("longbench_dir")
        self.data = read_rows(self.dataset_name, str(location) if location else None)
        for problem in self.data.problems:
            logger.warning(problem)
        self.model = metadata
        self.truncated = 0
        self._asked: list[int] = []
        # The corpus and lengths that this run's other tasks are given are not ours.
        about = settings_from({key: metadata[key] for key in ABOUT_CHECKPOINT if key in metadata}).to_metadata()
        theirs = names_of(EvalSettings, Role.NUMBERS)
        kept = {key: value for key, value in metadata.items() if key not in theirs}
        kept |= {key: about[key] for key in ABOUT_CHECKPOINT if key in about} | {"corpus": "longbench_e"}
        settings = {"until": [], "max_gen_toks": self.official.max_new_tokens, "do_sample": False}
        super().__init__(dict(config) | {"metadata": kept, "generation_kwargs": settings}, {})

    def test_docs(self) -> list[dict[str, Any]]:
        """The fields of official prediction files; the context is part of the prompt, which lm-eval logs."""
        return [
            {
                "index": index,
                generation.MARK: self.dataset_name,
                "_id": row.get("_id"),
                "answers": row["answers"],
                "all_classes": row.get("all_classes"),
                "length": row["length"],
            }
            for index, row in enumerate(self.data.rows)
        ]

    def doc_to_target(self, doc: dict[str, Any]) -> str:
        """The first right answer."""
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
        """Prompts, truncated in the middle and then, where the protocol has it, put into the chat template."""
        tokenizer, window = _tokenizer_and_window(self.model)
        cut = prompt_limit(window, self.official.max_new_tokens) if window else 0
        settings = dict(self.config.generation_kwargs or {})
        self._instances, self._asked, self.truncated = [], [], 0
        for doc_id, doc in self.doc_iterator(limit=limit, samples=samples):
            text = prompt(self.dataset_name, self.data.rows[doc["index"]])
            if cut:
                text, shortened = truncate_middle(text, tokenizer, cut)
                self.truncated += shortened
            if apply_chat_template and chat_template and self.official.chat:
                system = [{"role": "system", "content": system_instruction}] if system_instruction else []
                text = chat_template([*system, {"role": "user", "content": text}])
            self._asked.append(doc["index"])
            self._instances.append(
                Instance(
                    request_type="generate_until",
                    doc=doc,
                    arguments=(text, dict(settings)),
                    idx=0,
                    metadata=(self.config.task, doc_id, 1),
                )
            )
        if self.truncated:
            logger.warning(
                "LongBench-E %s: %d of %d prompts truncated to %d tokens",
                self.dataset_name,
                self.truncated,
                len(self._instances),
                cut,
            )

    def construct_requests(self, doc: dict[str, Any], ctx: str, **arguments: Any) -> Instance:
        """See `build_all_requests`."""
        raise NotImplementedError

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        """Percent, once for all rows and once for the row's bucket of length."""
        value = 100 * score_row(self.dataset_name, results[0], doc["answers"], doc["all_classes"])
        return {"score": value, f"score@{bucket(doc['length'])}": value}

    def metrics(self) -> list[str]:
        """The score of all rows and of each bucket."""
        return list(COLUMNS.values())

    def scored(self) -> dict[str, Any]:
        """The file and its hash, rows per bucket, truncated prompts, and rows that were left out."""
        buckets = Counter(f"score@{bucket(self.data.rows[index]['length'])}" for index in self._asked)
        return {
            "source": self.data.source,
            "revision": self.data.revision,
            "sha256": self.data.sha256,
            "documents": {"score": len(self._asked), **buckets},
            "truncated_prompts": self.truncated,
            "left_out": list(self.data.problems),
            "longshort": longshort.__version__,
        }


class LongBenchGroup(Group):
    """Means over datasets; over everything, the mean of categories and the plain mean of datasets.

    lm-eval's own groups know only the mean over all tasks below them.
    """

    def __init__(self, name: str, alias: str, children: list[Any]) -> None:
        metrics = [AggMetricConfig(metric=metric, weight_by_size=False) for metric in COLUMNS.values()]
        super().__init__(name=name, alias=alias, aggregate_metric_list=metrics, metadata={"version": "1.0"})
        for child in children:
            self.add(child)

    def aggregate(self, task_metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The group's row of results: value, standard error, and rows behind each (`sample_count`)."""
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
    """`longshort_longbench_e`: the six categories and what they hold."""

    def __init__(self, config: dict[str, Any]) -> None:
        tasks: dict[str, LongBenchTask] = {}
        problems = []
        for dataset in DATASETS:
            try:
                tasks[dataset] = LongBenchTask(
                    {**config, "task": LONGBENCH_PREFIX + dataset, "dataset_name": dataset, "task_alias": dataset}
                )
            except UserError as error:
                problems.append(str(error))
        if not tasks:
            logger.error("%s is left out: %s", LONGBENCH, problems[0])
        else:
            for problem in problems:  # told, and the other datasets are measured
                logger.warning("left out of %s: %s", LONGBENCH, problem)
        groups = []
        for category in CATEGORIES:
            members = [task for dataset, task in tasks.items() if DATASETS[dataset].category == category]
            if members:
                slug = category.lower().replace(" ", "-")
                groups.append(LongBenchGroup(LONGBENCH_PREFIX + slug, category, members))
        super().__init__(LONGBENCH, LONGBENCH, groups)
        self.problems = problems
        if not groups:
            self.aggregate_metric_list = None  # no empty table of groups

    def aggregate(self, task_metrics: Mapping[str, Any]) -> dict[str, Any]:
        """As any group's. Without data it is an error only now, and only if nothing else was measured.

        The glob `longshort_*` names this group too, and shall not fail for those who want the other tasks.

        Raises:
            UserError: no dataset could be read and no other task was measured.
        """
        if not len(self) and not task_metrics:
            raise UserError(self.problems[0])
        return super().aggregate(task_metrics)


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


def _tokenizer_and_window(model: Mapping[str, Any]) -> tuple[Any, int | None]:
    """The model's own tokenizer and window by the run's model arguments; nothing, and a warning, if not known."""
    key = tuple((name, model.get(name)) for name in ("tokenizer", "pretrained", "revision", "trust_remote_code"))
    return _load(key, model.get("max_length") or model.get("max_model_len"))


@lru_cache(maxsize=4)
def _load(key: tuple[tuple[str, Any], ...], max_length: Any) -> tuple[Any, int | None]:
    from lm_eval.models.utils import resolve_max_length
    from transformers import AutoConfig, AutoTokenizer

    given = dict(key)
    hub = {"revision": given["revision"] or "main", "trust_remote_code": bool(given["trust_remote_code"])}
    try:
        if isinstance(given["tokenizer"], str):
            tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"], trust_remote_code=hub["trust_remote_code"])
        elif isinstance(given["pretrained"], str):
            tokenizer = AutoTokenizer.from_pretrained(given["pretrained"], **hub)
        else:
            raise ValueError("the model arguments name no tokenizer")
        if not max_length:
            config = AutoConfig.from_pretrained(given["pretrained"] or given["tokenizer"], **hub)
            max_length = resolve_max_length(config, tokenizer)
        return tokenizer, int(max_length)
    except (OSError, ValueError) as error:
        logger.warning(
            "LongBench-E prompts are left whole, however long: %s. For the official truncation give "
            "--model_args tokenizer=…,max_length=….",
            " ".join(str(error).split())[:200],
        )
        return None, None
