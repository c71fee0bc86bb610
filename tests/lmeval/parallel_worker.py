"""One of several data-parallel processes: gloo group, lm-eval's rank and world size set by hand.

lm-eval's hf backend goes data-parallel only where it sees several GPUs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from lm_eval.models.huggingface import HFLM

from longshort.results.tokens import RECORD
from tests.lmeval.conftest import run


def main() -> None:
    """Run the cases of the JSON file named, one after another; write the results beside it, in their order."""
    file = Path(sys.argv[1])
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    found = []
    for case in json.loads(file.read_text()):
        own = {"dtype": case.get("dtype", "auto"), "max_length": case["metadata"].get("max_length")}
        lm = HFLM(pretrained=case["checkpoint"], device="cpu", **own)
        lm.accelerator = accelerator
        lm._rank, lm._world_size = accelerator.process_index, accelerator.num_processes
        found.append(run(lm, case["tasks"], case["metadata"], log_samples=True))
        if found[-1] and RECORD in found[-1]:
            file.with_name(f"tokens{len(found) - 1}.parquet").write_bytes(found[-1][RECORD].content)
    if accelerator.is_main_process:
        file.with_name("results.json").write_text(json.dumps(found, default=str))
    torch.distributed.destroy_process_group()  # its threads must not outlive the interpreter


if __name__ == "__main__":
    main()
