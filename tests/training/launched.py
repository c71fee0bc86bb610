"""Trainings that a test runs in this process, or in each of several that `torch.distributed.run` starts.

A GPU is what accelerate shards on; `sharded` lets it take the same path on a CPU.
"""

import gc
import json
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import accelerate.state
import pytest
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from longshort.training import TrainConfig, train
from longshort.training.run import fit, prepare
from longshort.training.trainer import LongShortTrainer

ROOT = Path(__file__).parents[2]


def launch(folder, cases, processes=2):
    """Run `cases` one after the other in each of the processes, see `main`; what they recorded is in `folder`."""
    (folder / "cases.json").write_text(json.dumps(cases))
    path = os.pathsep.join([str(ROOT / "harness"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [*launcher, "-m", "tests.training.launched", str(folder)]
    settings = {"env": environment, "cwd": ROOT, "capture_output": True, "text": True}
    result = subprocess.run(command, **settings, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-8000:]
    return result


class Recorder(TrainerCallback):
    """Keeps the weights before every step and the gradients that the optimizer gets, after clipping, in float32."""

    def __init__(self):
        self.weights, self.gradients = [], []

    def on_train_begin(self, args, state, control, model, **kwargs):
        """Record the first weights."""
        self.weights.append({name: whole(value) for name, value in model.named_parameters()})

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        """Record the gradients."""
        trained = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
        self.gradients.append({name: whole(gradient) for name, gradient in trained.items()})

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        """Record the weights that the step has led to."""
        self.on_train_begin(args, state, control, model)


def whole(value):
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).clone()


def record(config):
    """Train without writing a checkpoint; return what was recorded, and the rows of the log."""
    gc.freeze()  # the Trainer collects garbage, which would go through all that pytest holds
    recorder, own = Recorder(), LongShortTrainer.__init__

    def init(self, *args, **kwargs):
        own(self, *args, **kwargs)
        self.add_callback(recorder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LongShortTrainer, "__init__", init)
        trainer = fit(prepare(config.resolved(), Path(config.output), progress=False), None)
    return {"weights": recorder.weights, "gradients": recorder.gradients, "rows": trainer.rows}


@contextmanager
def sharded(version, **settings):
    """FSDP as `accelerate launch --use_fsdp` configures it; accelerate itself would use DDP on a CPU."""
    names = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": str(version),
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true" if version == 2 else "FULL_SHARD",
        "FSDP_USE_ORIG_PARAMS": "true",
        "FSDP_SYNC_MODULE_STATES": "false",  # of a device
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true" if version == 2 else "false",
    } | settings
    own = accelerate.state.AcceleratorState.__init__
    own_fsdp = FullyShardedDataParallel.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        own(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:  # what follows does on a GPU
            shared = accelerate.state.PartialState._shared_state
            self.distributed_type = shared["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)

    def fsdp(self, *args, **kwargs):
        own_fsdp(self, *args, **kwargs | {"device_id": None})  # of CPUs it takes only none

    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        patch.setattr(accelerate.state.AcceleratorState, "__init__", init)
        patch.setattr(FullyShardedDataParallel, "__init__", fsdp)
        yield


@contextmanager
def interrupted(step):
    """Let a training end as if it were killed when `step` is done, before that step is saved."""
    own = LongShortTrainer.log

    def log(self, logs, *args, **kwargs):
        own(self, logs, *args, **kwargs)
        if self.state.global_step == step:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LongShortTrainer, "log", log)
        with pytest.raises(Interrupted):
            yield


class Interrupted(Exception):
    """A run was killed."""


@contextmanager
def zero(stage):
    """DeepSpeed as `accelerate launch --use_deepspeed` configures it."""
    names = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage), "DS_ACCELERATOR": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        yield


def main(folder):
    """Run the cases of ``cases.json``.

    Each has the ``settings`` of a run; ``fsdp`` with its version or ``zero`` with its stage, if sharded; ``record``,
    if gradients are wanted, and no checkpoint; ``interrupt`` with the step at which the run is killed, to be resumed.
    """
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        config = TrainConfig(**case["settings"])
        sharding = zero(case["zero"]) if "zero" in case else sharded(case["fsdp"]) if "fsdp" in case else nullcontext()
        with sharding:
            if case.get("record"):
                recorded = record(config)
                if os.environ["RANK"] == "0":
                    torch.save(recorded, folder / f"{name}.pt")
            else:
                if "interrupt" in case:
                    with interrupted(case["interrupt"]):
                        train(config, progress=False)
                train(config, progress=False)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
