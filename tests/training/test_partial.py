"""The folder of a run in progress that version 0.1 wrote is resumed."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from longshort.errors import UserError
from longshort.training import TrainConfig
from longshort.training.partial import open_partial

SETTINGS = Path(__file__).with_name("data") / "settings-0.1.json"  # as version 0.1 wrote it
ARGUMENTS = SimpleNamespace(should_save=True, distributed_state=SimpleNamespace(wait_for_everyone=lambda: None))


def config(**changes):
    settings = {"base": "base", "corpus": "text.jsonl", "extension": "yarn", "factor": 4.0, "alpha": 0.3}
    settings |= {"save_at": (2,)}
    return TrainConfig(output="y", **settings | changes).resolved()


@pytest.fixture
def partial(tmp_path):
    save = tmp_path / "run.partial" / "checkpoint-4"
    save.mkdir(parents=True)
    (save / "trainer_state.json").write_text("{}")
    recorded = json.loads(SETTINGS.read_text()) | {"extension": "yarn", "extension_options": None}
    (save.parent / "settings.json").write_text(json.dumps(recorded))
    return save.parent


def test_a_run_of_version_0_1_resumes(partial):
    assert open_partial(partial, config(), ARGUMENTS) == partial / "checkpoint-4"


def test_a_clex_run_of_version_0_1_is_another_one(partial):
    """It drew one t per step, and clipped all gradients by one norm."""
    (partial / "settings.json").write_bytes(SETTINGS.read_bytes())
    same = config(extension="clex", extension_options={"step": 0.5})
    assert json.loads(SETTINGS.read_text())["extension_options"] == same.extension_options
    with pytest.raises(UserError):
        open_partial(partial, same, ARGUMENTS)


def test_what_changes_is_recorded(partial):
    open_partial(partial, config(save_dtype="bfloat16"), ARGUMENTS)
    assert json.loads((partial / "settings.json").read_text())["save_dtype"] == "bfloat16"


def test_with_a_best_step_the_dtype_may_not_change(partial):
    best = {"keep_best": "sce", "eval_every": 50}
    (partial / "settings.json").write_text(
        json.dumps(json.loads(SETTINGS.read_text()) | {"extension": "yarn", "extension_options": None, **best})
    )
    assert open_partial(partial, config(**best), ARGUMENTS)
    with pytest.raises(UserError):
        open_partial(partial, config(**best, save_dtype="bfloat16"), ARGUMENTS)


def test_another_run_s_folder_is_a_conflict(partial):
    with pytest.raises(UserError) as caught:
        open_partial(partial, config(alpha=0.2), ARGUMENTS)
    assert (caught.value.kind, caught.value.field) == ("conflict", "output")
    assert str(partial) in str(caught.value)
    assert (partial / "checkpoint-4").is_dir()


@pytest.mark.parametrize(
    "changes",
    [
        {"report_to": ("wandb",)},
        {"push_to_hub": "me/run"},
        {"push_to_hub": "me/run", "push_public": True},
        {"save_dtype": "bfloat16"},  # after one that cannot hold a weight
    ],
)
def test_what_only_the_end_of_a_run_depends_on_may_change(partial, changes):
    assert open_partial(partial, config(**changes), ARGUMENTS) == partial / "checkpoint-4"


@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "adafactor"},
        {"max_grad_norm": 0.0},
        {"attn_implementation": "eager"},
        {"keep_best": "sce", "eval_every": 50},
        {"trainer_arguments": {"adam_epsilon": 1e-6}},
        {"lora_rank": 4, "lora_targets": ("q_proj",)},
    ],
)
def test_what_changes_the_checkpoint_is_another_run(partial, changes):
    with pytest.raises(UserError) as caught:
        open_partial(partial, config(**changes), ARGUMENTS)
    assert (caught.value.kind, caught.value.field) == ("conflict", "output")


def test_settings_of_a_later_version_are_another_run(partial):
    recorded = json.loads((partial / "settings.json").read_text())
    (partial / "settings.json").write_text(json.dumps(recorded | {"unknown": 1}))
    with pytest.raises(UserError):
        open_partial(partial, config(), ARGUMENTS)
