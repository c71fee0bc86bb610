"""Which versions of lm-eval wrote results files, and whether their format is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NEWEST = (0, 4, 13)  # the last version of which files were read in tests; 0.4.3 is the first
# In every file of lm-eval's command line since 0.4.3. The version itself is recorded only by later ones.
SINCE_0_4_3 = ("model_name", "higher_is_better")


def unknown_version(data: Mapping[str, Any]) -> str | None:
    """Return which lm-eval wrote a file, where it is not one of 0.4.3 to 0.4.13, else None."""
    recorded = data.get("lm_eval_version")
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", str(recorded or ""))
    if match is None:
        return None if any(name in data for name in SINCE_0_4_3) else "lm-eval 0.4.2 or an older one"
    numbers = tuple(map(int, match.groups()))
    return f"lm-eval {recorded}, which is newer" if numbers > NEWEST else None
