"""Names of variants that differ in precision, and notes on values whose checkpoint may be taken for another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longshort.results.model_args import variant_suffix
from longshort.results.rows import Row

SHOWN = 3
IDENTITY = ("checkpoint", "revision", "task", "corpus", "metric", "length")


@dataclass(frozen=True)
class Variant:
    """A checkpoint in one of the dtypes in which it was measured."""

    base: str  # its name without the dtype, which its variants share
    dtype: str  # empty where it is not recorded, or not the same in all of its results


def name_precisions(rows: Iterable[Row]) -> dict[tuple[str, str], Variant]:
    """Append dtype and attention implementation to the names of checkpoints that were measured in several.

    Returns:
        The variants in dtype, by their new name and revision.
    """
    bases: dict[tuple[str, str], str] = {}
    known: dict[tuple[str, str], set[str]] = defaultdict(set)
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.columns["checkpoint"], row.columns["revision"]].append(row)
    for members in groups.values():
        saved = {row.saved_dtype for row in members} - {""}
        dtypes = [row.precision.get("dtype") or row.saved_dtype for row in members]
        for row in members:
            if len(saved) == 1 and row.precision.get("dtype") in saved:
                del row.precision["dtype"]  # the saved dtype, which the others got by dtype=auto
        differing = {
            name for name in ("attn_implementation", "dtype") if len({row.precision.get(name) for row in members}) > 1
        }
        for row, dtype in zip(members, dtypes, strict=True):
            shown = {name: value for name, value in row.precision.items() if name in differing}
            checkpoint, revision = row.columns["checkpoint"], row.columns["revision"]
            row.columns["checkpoint"] = variant = checkpoint + variant_suffix(shown)
            if "dtype" in differing:
                shown.pop("dtype", None)
                bases[variant, revision] = checkpoint + variant_suffix(shown)
                known[variant, revision] |= {dtype} - {""}
    return {key: Variant(base, known[key].pop() if len(known[key]) == 1 else "") for key, base in bases.items()}


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Return one line for each thing in the names and repetitions of the checkpoints that a reader should know."""
    return [*_shared_names(rows), *_incomplete_variants(rows), *_repeated(rows)]


def _shared_names(rows: Iterable[Row]) -> list[str]:
    """One line for each family whose members have no `family` set and share only their folders' base name."""
    named = {row.base for row in rows if row.has_family}
    bases: dict[str, list[str]] = {}
    for base in sorted({row.base for row in rows} - named):
        bases.setdefault(Path(base).name, []).append(base)
    return notes_on_families(dict(sorted(bases.items())))


def notes_on_families(origins: Mapping[str, Sequence[str]]) -> list[str]:
    """Return one line for each family, by its name, that consists of several bases or folders without a `family`."""
    return [
        f"{' and '.join(shared[:SHOWN])} have no `family` set and share a base name: they count as one family, "
        f"'{name}'. If they are different families, evaluate with --family, or set family in the manifest."
        for name, shared in origins.items()
        if len(shared) > 1
    ]


def _incomplete_variants(rows: Iterable[Row]) -> list[str]:
    """Variants of one checkpoint that were not evaluated on the same tasks may have been meant to be one."""
    tasks: dict[tuple[str, str], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        tasks[row.base, row.columns["revision"]][row.columns["checkpoint"]].add(row.columns["task"])
    found = [
        sorted(of)
        for of in tasks.values()
        if len({frozenset(names) for names in of.values()}) > 1 and any("=" in name for name in of)
    ]
    if not found:
        return []
    first = " and ".join(found[0][:SHOWN])
    others = f" (and those of {len(found) - 1} other checkpoints)" if len(found) > 1 else ""
    return [
        f"{first} have results of different tasks and count as different checkpoints, because their model arguments "
        f"differ{others}. To compare the tasks, evaluate them with the same arguments."
    ]


def _repeated(rows: Iterable[Row]) -> list[str]:
    """Values that were measured more than once, and what differed between the measurements."""
    measured: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        measured[tuple(row.columns[name] for name in IDENTITY)].append(row)
    repeated = {key: of for key, of in measured.items() if len(of) > 1}
    if not repeated:
        return []
    checkpoints = list(dict.fromkeys(str(key[0]) for key in repeated))
    differing = sorted({name for of in repeated.values() for name in _differing(of)})
    how = f" with different {', '.join(differing)}" if differing else ""
    number = sum(len(of) - 1 for of in repeated.values())
    return [
        f"{number} values of {len(checkpoints)} checkpoints (the first: {checkpoints[0]}) were measured more than "
        f"once{how}; the newest counts."
    ]


def _differing(rows: Sequence[Row]) -> set[str]:
    names = {name for row in rows for name in row.settings}
    return {name for name in names if len({row.settings.get(name) for row in rows}) > 1}
