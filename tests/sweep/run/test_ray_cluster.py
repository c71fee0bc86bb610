"""A Ray cluster of two nodes, started by hand on loopback and guarded by a token; each has a pretended GPU."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from longshort.testing import save_checkpoint, save_corpus
from tests.sweep.conftest import events, reports, save_reporting, sweep, wait_for

TASKS = ("longshort_perplexity", "longshort_misalignment")
DEFAULTS = """
defaults:
  corpus: text.jsonl
  lengths: [16, 32]
  num_docs: 2
  train_length: 32
  dtype: float32
  trust_remote_code: true
checkpoints:
"""


@dataclass
class Cluster:
    """Two `ray start --block`, each in a process group of its own."""

    folder: Path
    address: str
    environment: dict[str, str]
    nodes: dict[str, subprocess.Popen[bytes]]

    def add(self, name: str, *arguments: str) -> None:
        common = ["--block", "--num-cpus", "2", "--num-gpus", "1", "--object-store-memory", "80000000"]
        common += ["--disable-usage-stats", "--include-log-monitor", "false"]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", "start", *arguments, *common],
                env=os.environ | self.environment | {"NODE": name},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def raylet(self, name: str) -> int:
        """The process that stands for a node."""
        children = Path(f"/proc/{self.nodes[name].pid}/task/{self.nodes[name].pid}/children").read_text().split()
        (raylet,) = [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"]
        return raylet

    def sweep(self, folder: Path, manifest: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "longshort", "sweep", manifest, "--engine", "ray", "--address", self.address]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=folder,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ls", dir="/tmp"))  # short: the paths of Ray's sockets have 107 characters
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "HF_MODULES_CACHE": str(folder / "modules"),
    }
    cluster = Cluster(folder, f"127.0.0.1:{port}", environment, {})
    try:
        cluster.add("head", "--head", "--port", str(port), "--include-dashboard", "false")
        wait_for(lambda: "Ray runtime started" in (folder / "head.log").read_text())
        cluster.add("second", "--address", cluster.address)
        wait_for(lambda: "Ray runtime started" in (folder / "second.log").read_text())
        yield cluster
    finally:
        for process in cluster.nodes.values():
            process.terminate()
        for process in cluster.nodes.values():
            with suppress(subprocess.TimeoutExpired):  # without a head they would not end for long
                process.wait(3)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def test_without_its_token_a_cluster_refuses_in_one_line(cluster: Cluster, tmp_path: Path) -> None:
    save_corpus(tmp_path / "text.jsonl", num_docs=1, num_bytes=100)
    save_checkpoint(tmp_path / "model")
    (tmp_path / "m.yaml").write_text(DEFAULTS + "  - pretrained: ./model\n")
    ray = ("--engine", "ray", "--address", cluster.address)
    done = sweep(tmp_path, "m.yaml", *ray, RAY_TMPDIR=str(cluster.folder), RAY_AUTH_TOKEN_PATH="none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "~/.ray/auth_token" in done.stderr.splitlines()[-1]


def test_work_is_placed_on_gpus_and_a_lost_node_loses_nothing(cluster: Cluster, tmp_path: Path) -> None:
    save_corpus(tmp_path / "text.jsonl", num_docs=2, num_bytes=500)
    for seed, name in enumerate(("one", "two", "none")):
        save_reporting(tmp_path, name, seed, gate="m.yaml" if name == "none" else "gate")
    (tmp_path / "m.yaml").write_text(
        DEFAULTS
        + "  - {pretrained: models/one, resources: {cpus: 1}}\n"
        + "  - {pretrained: models/two, resources: {cpus: 1}}\n"
        + "  - {pretrained: models/none, resources: {cpus: 1, gpus: 0}}\n"
        + "  - {pretrained: models/one, corpus: m.yaml, resources: {cpus: 1, gpus: 2}}\n"
    )
    out = tmp_path / "out"
    driver = cluster.sweep(tmp_path, "m.yaml", "-o", "out", "--node-wait", "0.05")

    wait_for(lambda: reports(tmp_path, "one") and reports(tmp_path, "two"))  # both hold a GPU, at the same time
    placed = {report["NODE"]: name for name in ("one", "two") for report in reports(tmp_path, name)}
    assert set(placed) == {"head", "second"}
    assert {reports(tmp_path, name)[0]["CUDA_VISIBLE_DEVICES"] for name in ("one", "two")} == {"0"}

    lost = placed["second"]
    os.kill(cluster.raylet("second"), signal.SIGKILL)  # while its worker loads the checkpoint
    wait_for(lambda: events(out, "retry"))
    (tmp_path / "gate").touch()
    printed, errors = driver.communicate(timeout=120)

    assert driver.returncode == 1
    assert "Traceback" not in errors
    too_wide = "it asks for 2 GPUs; no node of the cluster has that (at most 1 GPUs)"
    assert f"{too_wide}: it waits 3 s for one" in printed
    failed = {(event["checkpoint"], event["task"], event["kind"], event["message"]) for event in events(out, "failed")}
    remedy = "Correct its resources, or wait longer for nodes with --node-wait"
    assert failed == {("one on m.yaml", task, "setting", f"{too_wide}. {remedy}") for task in TASKS}
    (retry,) = events(out, "retry")
    assert retry["kind"] == "killed"
    assert retry["checkpoint"].startswith(lost)
    done = [(event["checkpoint"], event["task"]) for event in events(out, "done")]
    assert sorted(done) == sorted(
        (name, task) for name in ("one on text.jsonl", "two", "none") for task in TASKS
    )  # each once
    assert [report["NODE"] for report in reports(tmp_path, lost)] == ["second", "head"]
    assert {report["CUDA_VISIBLE_DEVICES"] for report in reports(tmp_path, "none")} == {""}
    assert reports(tmp_path, "one")[0]["OMP_NUM_THREADS"] == "1"


def test_an_interruption_ends_it_and_a_head_that_disappears_is_told_in_one_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The last test of the cluster."""
    save_corpus(tmp_path / "text.jsonl", num_docs=2, num_bytes=500)
    save_reporting(tmp_path, "held", gate="never")
    (tmp_path / "m.yaml").write_text(DEFAULTS + "  - {pretrained: models/held, resources: {cpus: 1}}\n")
    driver = cluster.sweep(tmp_path, "m.yaml", "-o", "out")
    wait_for(lambda: reports(tmp_path, "held"))
    driver.send_signal(signal.SIGINT)
    _, errors = driver.communicate(timeout=30)
    assert driver.returncode == 130
    assert ": longshort sweep m.yaml" in errors.splitlines()[-1]

    driver = cluster.sweep(tmp_path, "m.yaml", "-o", "out")
    wait_for(lambda: len(reports(tmp_path, "held")) == 2)
    os.killpg(cluster.nodes["head"].pid, signal.SIGKILL)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "Traceback" not in errors
    told = [line for line in errors.splitlines() if line.startswith("longshort:")]
    assert len(told) == 1
    assert "Ray cluster" in told[0]
