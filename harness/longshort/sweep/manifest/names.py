"""Names of checkpoints to show: short, and unique in a manifest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePath

from longshort.results.model_args import PRECISION, identity_args, variant_suffix
from longshort.settings import Checkpoint, loaded_from, plain_name


def variant_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The model arguments that make another model of the same weights, by name."""
    return identity_args({**checkpoint.model_args, "pretrained": checkpoint.pretrained, "dtype": checkpoint.dtype})


def with_unique_names(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The same checkpoints, those that would share a name labelled with what differs.

    That is parts of their paths, the precision of their weights, and the corpus. Other model arguments that can change
    the model are always in the name.
    """
    alike: dict[str, set[tuple[str, ...]]] = {}
    for checkpoint in checkpoints:
        alike.setdefault(plain_name(checkpoint), set()).add(loaded_from(checkpoint))
    clashing = {name for name, sources in alike.items() if len(sources) > 1}
    paths = {path for name in clashing for sources in alike[name] for path in sources}
    short = _suffixes(paths, {path for checkpoint in checkpoints for path in loaded_from(checkpoint)})
    names = [
        plain_name(checkpoint, short if plain_name(checkpoint) in clashing else None) for checkpoint in checkpoints
    ]
    names = _with_variants(names, checkpoints)
    corpora: dict[str, set[str]] = {}
    for name, checkpoint in zip(names, checkpoints, strict=True):
        corpora.setdefault(name, set()).add(checkpoint.corpus)
    labelled = []
    for name, checkpoint in zip(names, checkpoints, strict=True):
        others = corpora[name]
        label = f"{name} on {_suffixes(others, others)[checkpoint.corpus]}" if len(others) > 1 else name
        labelled.append(checkpoint if label == plain_name(checkpoint) else replace(checkpoint, label=label))
    return labelled


def _with_variants(names: Sequence[str], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """Each name with the model arguments, those of precision only where they distinguish it from another."""
    variants = [variant_of(checkpoint) for checkpoint in checkpoints]
    values = {value for variant in variants for value in variant.values()}
    short = _suffixes(values, values)  # of absolute paths, as a tokenizer's
    precisions = [{name: variant.pop(name, None) for name in PRECISION} for variant in variants]
    found = [
        name + variant_suffix({argument: short[value] for argument, value in variant.items()})
        for name, variant in zip(names, variants, strict=True)
    ]
    groups: dict[str, list[dict[str, str | None]]] = defaultdict(list)
    for name, precision in zip(found, precisions, strict=True):
        groups[name].append(precision)
    for index, (name, precision) in enumerate(zip(found, precisions, strict=True)):
        found[index] += variant_suffix(
            {
                argument: value
                for argument, value in precision.items()
                if value and len({other[argument] for other in groups[name]}) > 1
            }
        )
    return found


def _suffixes(paths: Collection[str], every: Collection[str]) -> dict[str, str]:
    """For each path the shortest end that no other of `every` has; a name on the hub stays whole."""
    ends = Counter(end for path in every for end in _ends(path))
    found = {}
    for path in paths:
        own = [end for end in _ends(path)[:-1] if ends[end] == 1] if PurePath(path).is_absolute() else []
        found[path] = "/".join(own[0]) if own else path
    return found


def _ends(path: str) -> list[tuple[str, ...]]:
    """Its last part, its last two, …, all of it."""
    parts = PurePath(path).parts
    return [parts[-count:] for count in range(1, len(parts) + 1)]
