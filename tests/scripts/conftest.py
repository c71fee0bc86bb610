"""The scripts are not installed: their folder is put on the path, as Python does when it runs one of them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
