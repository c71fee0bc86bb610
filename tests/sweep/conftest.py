"""A folder of tiny checkpoints, sound and broken, and the command line run on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from longshort.testing import save_checkpoint, save_corpus

LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
DEFAULTS = """
defaults:
  corpus: text.jsonl
  lengths: [16, 32, 64]
  num_docs: 3
  train_length: 32
  dtype: float32
  resources: {cpus: 1}
"""


# A checkpoint whose code tells where it runs, then waits for a file; it is slow on a node that is called second.
CODE = """
import json, os, time
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

names = ("CUDA_VISIBLE_DEVICES", "NODE", "OMP_NUM_THREADS")
Path({folder!r}, f"{{os.getpid()}}.json").write_text(json.dumps({{name: os.environ.get(name) for name in names}}))
while not Path({gate!r}).exists():
    time.sleep(0.05)


class Own(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = Own

    def __init__(self, config):
        super().__init__(config)
        if os.environ.get("NODE") == "second":
            self.model.register_forward_pre_hook(lambda *_: time.sleep(0.3))
"""


def save_reporting(place: Path, name: str, seed: int = 0, gate: str = "") -> None:
    """A checkpoint models/NAME that writes reports/NAME/PID.json when it is loaded, then waits for the file `gate`."""
    folder = save_checkpoint(place / "models" / name, seed=seed)
    (place / "reports" / name).mkdir(parents=True)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = CODE.format(folder=str(place / "reports" / name), gate=str(place / gate))
    (folder / "own.py").write_text(code)


def reports(place: Path, name: str) -> list[dict[str, Any]]:
    """What a checkpoint of `save_reporting` told, the earliest first."""
    files = sorted((place / "reports" / name).iterdir(), key=lambda file: file.stat().st_mtime)
    return [json.loads(file.read_text()) for file in files if file.stat().st_size]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)


def sweep(folder: Path, *arguments: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `longshort sweep` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "longshort", "sweep", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """The values of each result in force, by its place in the folder."""
    files = sorted((folder / "results").rglob("results_*.json"))
    return {file.parent.relative_to(folder).as_posix(): json.loads(file.read_text())["results"] for file in files}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Lines of status.jsonl of one kind."""
    lines = [json.loads(line) for line in (folder / "status.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def write_manifest(folder: Path, entries: str, name: str = "manifest.yaml") -> Path:
    """A manifest with the usual defaults."""
    path = folder / name
    path.write_text(f"{DEFAULTS}\ncheckpoints:\n{entries}")
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve sound checkpoints of four architectures in models/, two in limited/, broken ones in broken/, a corpus."""
    place = tmp_path_factory.mktemp("sweep")
    save_corpus(place / "text.jsonl", num_docs=3, num_bytes=700)
    shapes: dict[str, dict[str, object]] = {
        "llama": {},
        "gpt2": {},
        "gpt_neox": LLAMA_LIKE,
        "mistral": LLAMA_LIKE | {"sliding_window": 24, "num_key_value_heads": 4},
    }
    for architecture, shape in shapes.items():
        for seed in range(3):
            save_checkpoint(place / "models" / f"{architecture}-{seed}", model_type=architecture, seed=seed, **shape)
    shutil.copytree(place / "models" / "gpt2-0", place / "limited" / "short")  # it has 64 positions
    shutil.copytree(place / "models" / "llama-0", place / "limited" / "slow")
    sound = place / "models" / "llama-0"
    for name in ("missing-weights", "corrupt", "nan", "brings-code"):
        shutil.copytree(sound, place / "broken" / name)
    weights = load_file(sound / "model.safetensors")
    metadata = {"format": "pt"}
    nan = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    save_file(nan, place / "broken" / "nan" / "model.safetensors", metadata=metadata)
    some = {name: value for name, value in weights.items() if name != "lm_head.weight"}
    save_file(some, place / "broken" / "missing-weights" / "model.safetensors", metadata=metadata)
    (place / "broken" / "corrupt" / "model.safetensors").write_bytes((sound / "model.safetensors").read_bytes()[:500])
    config = json.loads((sound / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (place / "broken" / "brings-code" / "config.json").write_text(json.dumps(config))
    (place / "broken" / "brings-code" / "own.py").write_text(f"open({str(place / 'ran')!r}, 'w')\n")
    return place
