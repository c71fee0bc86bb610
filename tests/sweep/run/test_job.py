"""What a worker is asked to do."""

from __future__ import annotations

from longshort.settings import Checkpoint
from longshort.sweep.run.job import job_for, job_from
from longshort.sweep.store.plan import Item


def test_the_commit_is_pinned_but_the_name_is_kept() -> None:
    checkpoint = Checkpoint("owner/name", revision="step10", tasks=("a",), trust_remote_code=True, dtype="float32")
    planned = Item(checkpoint, {"a": {"identity": "c" * 40}}, missing={"a": None})
    job = job_for(planned, ("a",))
    assert job.model_args == {
        "pretrained": "owner/name",
        "revision": "c" * 40,
        "dtype": "float32",
        "trust_remote_code": True,
    }
    assert job.revision == "step10"
    assert job_from(job.to_line()).model_args == job.model_args


def test_what_is_not_pinned_is_loaded_by_its_name() -> None:
    """A commit that is not known, or an adapter beside the checkpoint: lm-eval knows one revision for both."""
    for commit, added in ((None, {}), ("c" * 40, {"peft": "owner/adapter"})):
        checkpoint = Checkpoint("owner/name", revision="step10", tasks=("a",), model_args=added)
        planned = Item(checkpoint, {"a": {"identity": commit}}, missing={"a": None})
        assert job_for(planned, ("a",)).model_args["revision"] == "step10"


def test_metadata_of_other_tasks_is_apart_from_longshort_s_settings() -> None:
    checkpoint = Checkpoint("owner/name", tasks=("a",), task_args={"max_seq_lengths": [4096]})
    job = job_from(job_for(Item(checkpoint, {"a": {"identity": None}}), ("a",)).to_line())
    assert job.task_args == {"max_seq_lengths": [4096]}
    assert "max_seq_lengths" not in job.metadata
    assert job_for(Item(Checkpoint("owner/name"), {"a": {"identity": None}}), ("a",)).task_args == {}
