"""Results files: lm-eval's JSON to the tidy table, atomic writes, and the one reader of JSON files."""

from longshort.results.files import parse_json, read_bytes, read_json, remove_left_over, write_atomically
from longshort.results.table import COLUMNS, Reading, read, read_results

__all__ = [
    "COLUMNS",
    "Reading",
    "parse_json",
    "read",
    "read_bytes",
    "read_json",
    "read_results",
    "remove_left_over",
    "write_atomically",
]
