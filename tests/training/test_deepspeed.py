"""A DeepSpeed configuration agrees with the settings, or is refused; DeepSpeed itself is not needed."""

import json

import pytest

from longshort.training import TrainConfig, deepspeed, train
from longshort.training.deepspeed import check_deepspeed
from tests.errors import user_error

GATHERS = "stage3_gather_16bit_weights_on_model_save"


def config(tmp_path, content, **changes):
    (tmp_path / "ds.json").write_text(content if isinstance(content, str) else json.dumps(content))
    settings = {"base": "nowhere", "batch_size": 2, "global_batch_size": 12, "dtype": "bfloat16"}
    return TrainConfig(output=str(tmp_path / "run"), deepspeed=str(tmp_path / "ds.json"), **settings | changes)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(deepspeed, "find_spec", lambda name: name)
    monkeypatch.setenv("WORLD_SIZE", "3")


def test_what_is_missing_or_automatic_follows_the_settings(tmp_path, installed):
    given = {"zero_optimization": {"stage": 2}, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    assert check_deepspeed(config(tmp_path, given, max_grad_norm=0.3)) == {
        "zero_optimization": {"stage": 2},
        "train_batch_size": 12,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,  # 12 sequences are 2 at a time on 3 processes
        "gradient_clipping": 0.3,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
    }


@pytest.mark.parametrize("given", [{}, {GATHERS: "auto"}, {GATHERS: True}])
def test_zero_3_gathers_the_weights_that_are_saved(tmp_path, installed, given):
    settings = config(tmp_path, {"zero_optimization": {"stage": 3} | given}, loss="dense")
    assert check_deepspeed(settings)["zero_optimization"] == {"stage": 3, GATHERS: True}


def test_zero_3_that_gathers_nothing(tmp_path, installed):
    settings = config(tmp_path, {"zero_optimization": {"stage": 3, GATHERS: False}}, loss="dense")
    with user_error("setting", str(tmp_path / "ds.json"), GATHERS, "False", "True", field="deepspeed"):
        train(settings, progress=False)


def test_equal_values_are_no_contradiction(tmp_path, installed):
    given = {"train_micro_batch_size_per_gpu": 2, "gradient_clipping": 1, "bf16": {"enabled": True}}
    assert given.items() <= check_deepspeed(config(tmp_path, given)).items()


@pytest.mark.parametrize(
    ("content", "changes", "facts"),
    [
        ({"train_micro_batch_size_per_gpu": 4}, {}, ("train_micro_batch_size_per_gpu", 4, 2, "--batch-size")),
        ({"train_batch_size": 64}, {}, ("train_batch_size", 64, 12, "--global-batch-size")),
        ({"gradient_accumulation_steps": 1}, {}, ("gradient_accumulation_steps", 1, 6, "--global-batch-size")),
        ({"gradient_clipping": 0.5}, {}, ("gradient_clipping", 0.5, 1.0, "--max-grad-norm")),
        ({"fp16": {"enabled": True}}, {}, ("fp16.enabled", "--dtype")),
        ({"bf16": {"enabled": False}}, {}, ("bf16.enabled", "--dtype")),
        ({"bf16": {"enabled": True}}, {"dtype": "float32"}, ("bf16.enabled", "--dtype")),
        ({"optimizer": {"type": "Adam"}}, {}, ("'optimizer'", "--optim", "--learning-rate")),
        ({"scheduler": {"type": "WarmupLR"}}, {}, ("'scheduler'", "--scheduler", "--warmup")),
        ({"zero_optimization": None}, {}, ("zero_optimization null", "object")),
        ({"bf16": True}, {}, ("bf16 true", "object")),
        ({"zero_optimization": {"stage": 3}}, {}, ("zero_optimization.stage 3", "--loss dense")),
    ],
)
def test_contradictions(tmp_path, content, changes, facts):
    settings = config(tmp_path, content, **changes)
    with user_error("setting", str(tmp_path / "ds.json"), *facts, field="deepspeed"):
        train(settings, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["ds.json"]


@pytest.mark.parametrize(("content", "kind"), [("{", "data"), ("[1]", "data")])
def test_files_that_are_no_configuration(tmp_path, content, kind):
    with user_error(kind, str(tmp_path / "ds.json")):
        train(config(tmp_path, content), progress=False)


def test_a_file_that_is_not_there(tmp_path):
    settings = TrainConfig(output=str(tmp_path / "run"), base="nowhere", deepspeed=str(tmp_path / "none.json"))
    with user_error("not_found", str(tmp_path / "none.json")):
        train(settings, progress=False)


def test_deepspeed_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(deepspeed, "find_spec", lambda _: None)
    with user_error("dependency", "pip install deepspeed", field="deepspeed"):
        train(config(tmp_path, {"zero_optimization": {"stage": 2}}), progress=False)
