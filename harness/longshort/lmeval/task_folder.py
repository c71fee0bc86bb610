"""Where the task YAMLs lie."""

from __future__ import annotations

from pathlib import Path


def tasks_folder() -> Path:
    """The folder for lm-eval's ``--include_path``: in a wheel beside the package, in a clone at its top."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parents[1] / "tasks"
