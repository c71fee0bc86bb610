"""The folder of the task YAMLs."""

from __future__ import annotations

from pathlib import Path


def tasks_folder() -> Path:
    """Return the folder for lm-eval's ``--include_path``: inside the package in a wheel, at the top of a clone."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "tasks"
    return inside if inside.is_dir() else package.parents[1] / "tasks"
