"""Imports torch, transformers and lm-eval for a process that is there to evaluate."""

from __future__ import annotations

import gc
import sys
from importlib import import_module

LIBRARIES = ("transformers.modeling_utils", "longshort.lmeval.evaluate", "longshort.lmeval.tasks")


def import_libraries() -> None:
    """Import at once what an evaluation needs, without looking for garbage among it.

    The imports make 700,000 objects that all stay. Python's collector would go through them again and again while
    they come, a fifth of the time, and once more at each full collection; so it waits, and leaves them out for good.
    Where torch is there already the process is another's, and its collector is left alone.
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
