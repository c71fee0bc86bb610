"""Parts of `scripts/compare_floors.py`."""
