"""The dtype of saved weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from longshort.errors import UserError
from longshort.training.extension.options import LEARNED_FREQUENCIES

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


def convert_weights(folder: Path, dtype: torch.dtype) -> None:
    """Convert the float32 weights of a checkpoint or adapter, file by file; CLEX's frequencies stay in float32.

    Args:
        folder: as ``save_pretrained`` has written it.
        dtype: torch.float32 changes nothing.

    Raises:
        UserError: a weight is beyond the range of `dtype`.
    """
    if dtype == torch.float32:
        return
    size = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is not a dict
        for name, value in state.items():
            if value.dtype == torch.float32 and LEARNED_FREQUENCIES not in name:
                state[name] = value.to(dtype)
                if value.isfinite().all() and not state[name].isfinite().all():
                    raise UserError(
                        f"Weight {name} is beyond the range of {str(dtype).removeprefix('torch.')}. Set --save-dtype "
                        "to bfloat16 or float32; the same command then resumes from the last step that was saved.",
                        "setting",
                        "save_dtype",
                    )
            size += state[name].nbytes
        save_file(state, path, metadata)
    if (folder / INDEX).exists():
        _update(folder / INDEX, "metadata", "total_size", size)
    if (folder / CONFIG).exists():
        _update(folder / CONFIG, None, "dtype", str(dtype).removeprefix("torch."))


def _update(path: Path, section: str | None, name: str, value: int | str) -> None:
    content = json.loads(path.read_text("utf-8"))
    (content if section is None else content[section])[name] = value
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
