"""Imports torch, transformers and lm-eval in a process that only evaluates."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

LIBRARIES = ("transformers.modeling_utils", "longshort.lmeval.evaluate", "longshort.lmeval.tasks")


def import_libraries() -> None:
    """Import everything that an evaluation needs, without garbage collection meanwhile.

    The imports create 700,000 objects that all live on. Python's collector would visit them repeatedly during the
    imports, a fifth of their time, and at each full collection after them; so it is paused, and they are frozen.
    Where torch is already imported the process has another purpose, and its collector stays as it is.
    """
    if "torch" in sys.modules or not gc.isenabled():
        return
    gc.disable()
    try:
        for name in LIBRARIES:
            import_module(name)
        gc.freeze()
    finally:
        gc.enable()
