"""The manifests that are shipped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from longshort.errors import UserError
from longshort.settings import Checkpoint
from longshort.sweep.manifest.load import load_manifest, shipped
from tests.sweep.manifests import RECORD, make_folder

SHIPPED = {"demo", "paper", "pythia", "small", "long-context"}


def test_the_shipped_manifests_are_these():
    assert set(shipped()) == SHIPPED


def load_shipped(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Checkpoint]:
    monkeypatch.chdir(folder)
    if name == "demo":
        from longshort.demo import Scale, training_plan

        for config in training_plan(folder / "longshort-demo", Scale()):
            own = {"base": config.base, "config": {"base": config.base}, "train_length": config.train_length}
            make_folder(Path(config.output), RECORD | own)
    return load_manifest(name)


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_shipped_manifests_load(name, tmp_path, monkeypatch):
    found = load_shipped(name, tmp_path, monkeypatch)
    names = [checkpoint.name for checkpoint in found]
    assert len(set(names)) == len(names)
    assert yaml.safe_load(shipped()[name].read_text("utf-8"))["description"]
    for checkpoint in found:
        assert checkpoint.family, checkpoint.name
        assert checkpoint.is_local or re.fullmatch(r"[\w.-]+/[\w.-]+", checkpoint.pretrained), checkpoint.name
        size = re.search(r"(?<![\dx.])(\d+(?:\.\d+)?)([mMbB])(?![a-z])", checkpoint.pretrained.replace("_", "."))
        if size and checkpoint.params and not checkpoint.is_local:  # no slip of a digit
            stated = float(size[1]) * {"m": 1e6, "b": 1e9}[size[2].lower()]
            assert checkpoint.params == pytest.approx(stated, rel=0.35), checkpoint.name


@pytest.mark.parametrize("name", sorted(SHIPPED - {"demo"}))
def test_every_fact_of_a_shipped_manifest_has_a_source(name):
    """Each entry, or the entries around it, stand below a comment."""
    lines = shipped()[name].read_text("utf-8").splitlines()
    start = lines.index("checkpoints:")
    is_sourced = "# Sources:" in "\n".join(lines[:start])
    for line in lines[start + 1 :]:
        is_sourced = is_sourced or line.lstrip().startswith("#")
        assert is_sourced or "pretrained" not in line, line


def test_sizes_of_the_shipped_manifests(tmp_path, monkeypatch):
    count = {name: len(load_shipped(name, tmp_path, monkeypatch)) for name in SHIPPED}
    assert count["demo"] == 12
    assert count["pythia"] == 80
    assert 15 <= count["paper"] <= 20
    assert 18 <= count["small"] <= 25
    assert 18 <= count["long-context"] <= 25


def test_the_demo_is_evaluated_as_by_the_demo(tmp_path, monkeypatch):
    from longshort.demo import TRAIN_LENGTH, Scale

    found = load_shipped("demo", tmp_path, monkeypatch)
    scale = Scale()
    for checkpoint in found:
        extension = checkpoint.name.partition("-")[0]
        assert checkpoint.family == extension
        assert checkpoint.trust_remote_code == (extension in ("clex", "eabf"))
        assert checkpoint.lengths == scale.lengths
        assert checkpoint.num_docs == scale.num_docs
        assert checkpoint.train_length == TRAIN_LENGTH
        assert (checkpoint.corpus, checkpoint.dtype) == ("builtin", "float32")


def test_the_demo_before_it_has_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"longshort-demo/checkpoints/plain-\*") as caught:
        load_manifest("demo")
    assert caught.value.kind == "not_found"


def test_steps_of_pythia():
    found = load_manifest("pythia")
    assert {checkpoint.family for checkpoint in found} == {
        f"pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")
    }
    for checkpoint in found:
        step = int(checkpoint.revision.removeprefix("step"))
        assert step % 1000 == 0 or step in [2**power for power in range(10)]  # the branches there are
        assert checkpoint.train_tokens == step * 2_097_152
    assert max(checkpoint.train_tokens or 0 for checkpoint in found) == 299_892_736_000


def test_what_needs_several_gpus_is_spread_over_them():
    for name in sorted(SHIPPED - {"demo"}):
        for checkpoint in load_manifest(name):
            gigabytes = (checkpoint.params or 0) * 2 / 1e9  # bfloat16
            gpus = checkpoint.resources.gpus or 1
            assert gigabytes < 0.8 * 80 * gpus, checkpoint.name
            assert (gpus > 1) == bool(checkpoint.model_args.get("parallelize")), checkpoint.name


def test_shipped_remote_code_is_the_exception():
    trusting = {
        checkpoint.pretrained
        for name in SHIPPED - {"demo"}
        for checkpoint in load_manifest(name)
        if checkpoint.trust_remote_code
    }
    assert trusting == {
        "DAMO-NLP-SG/CLEX-7B-16K",
        "DAMO-NLP-SG/CLEX-LLaMA-2-7B-64K",
        "DAMO-NLP-SG/CLEX-Phi-2-32K",
    }


@pytest.mark.parametrize("name", sorted(SHIPPED - {"demo"}))
def test_every_license_is_named(name):
    assert all(checkpoint.license for checkpoint in load_manifest(name))


@pytest.mark.parametrize(
    ("owner", "terms", "gated"),
    [
        ("meta-llama/Llama-2", "llama2", True),
        ("meta-llama/Llama-3.1", "llama3.1", True),
        ("meta-llama/Llama-3.2", "llama3.2", True),
        ("google/", "gemma", True),
        ("mistralai/", "apache-2.0", True),
        ("Yukang/", "NC", False),
        ("facebook/opt", "non-commercial", False),
        ("Qwen/Qwen1.5", "tongyi-qianwen", False),
    ],
)
def test_what_is_gated_or_bound_is_marked(owner, terms, gated):
    found = [
        checkpoint
        for name in SHIPPED - {"demo"}
        for checkpoint in load_manifest(name)
        if checkpoint.pretrained.startswith(owner)
    ]
    assert found
    assert all(checkpoint.gated == gated and terms in (checkpoint.license or "") for checkpoint in found)


def test_what_is_made_of_llama_2_keeps_its_license():
    made = [checkpoint for checkpoint in load_manifest("paper") if "llama" in (checkpoint.family or "")]
    assert len(made) > 5
    assert all((checkpoint.license or "").startswith("llama2") for checkpoint in made)
