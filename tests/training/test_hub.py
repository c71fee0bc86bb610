"""Checkpoints are uploaded to a stand-in for the hub; without write access nothing is trained."""

import json

import pytest
from huggingface_hub import constants

from longshort.errors import UserError
from longshort.training import TrainConfig, train
from tests.errors import user_error
from tests.hub import Hub
from tests.training.test_resume import folder, settings

__all__ = ["folder"]  # the fixture


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """Of this process too: the client reads these when it is called."""
    with Hub(tmp_path_factory.mktemp("hub")) as server:
        server.tokens = {"mine": "write", "reader": "read"}
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("home") / "token"))
        monkeypatch.setenv("HF_TOKEN", "mine")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


def run(folder, **changes):
    return train(TrainConfig(output=str(folder / "run"), **settings(folder, steps=1, **changes)), progress=False)


def content(hub, name):
    repository = hub.repositories["models", name]
    files = repository.commits[repository.branches["main"]]
    return {path: file.blob.read_bytes() for path, file in files.items()}


@pytest.mark.parametrize("public", [False, True])
def test_the_finished_checkpoint_is_in_the_repository(hub, folder, public):
    output = run(folder, push_to_hub="long", push_public=public)
    on_disk = {path.name: path.read_bytes() for path in output.iterdir()}
    assert "model.safetensors" in on_disk
    assert content(hub, "me/long") == on_disk
    assert hub.private == (set() if public else {"me/long"})
    assert json.loads(on_disk["longshort.json"])["config"]["push_to_hub"] == "me/long"
    assert not any(b"mine" in content for content in on_disk.values())  # the token


@pytest.mark.parametrize(
    ("token", "name", "kind"),
    [
        ("reader", "me/long", "hub"),
        ("", "me/long", "hub"),
        ("stolen", "me/long", "hub"),
        ("mine", "other/long", "hub"),
        ("mine", "a/b/c", "setting"),
        ("", "a/b/c", "setting"),
    ],
)
def test_without_write_access_nothing_is_trained(hub, folder, monkeypatch, token, name, kind):
    hub.add_model("other/long", folder)  # which all can read
    monkeypatch.setenv("HF_TOKEN", token)
    before = set(folder.iterdir())
    with user_error(kind, f"'{name}'", field="push_to_hub"):
        run(folder, push_to_hub=name)
    assert set(folder.iterdir()) == before
    assert ("models", "me/long") not in hub.repositories


def test_no_repository_is_left_by_a_run_that_cannot_start(hub, folder):
    with pytest.raises(UserError):
        run(folder, push_to_hub="me/long", base=str(folder / "missing"), model_config=None)
    assert ("models", "me/long") not in hub.repositories


def test_an_upload_that_fails_loses_nothing_and_is_repeated(hub, folder):
    hub.full = True
    with user_error("hub", f"hf upload me/long {folder / 'run'} --private", "storage limit", field="push_to_hub"):
        run(folder, push_to_hub="me/long")
    record = folder / "run" / "longshort.json"
    assert [path.name for path in folder.glob("run*")] == ["run"]
    assert content(hub, "me/long") == {}
    hub.full, written = False, record.stat().st_mtime_ns
    run(folder, push_to_hub="me/long")
    assert record.stat().st_mtime_ns == written
    assert "model.safetensors" in content(hub, "me/long")
