"""From an entry of a manifest to checkpoints: globs of folders, records of our own training, lists of revisions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from longshort.errors import UserError
from longshort.results import read_json
from longshort.results.variants import notes_on_families
from longshort.settings import Checkpoint
from longshort.settings.types import Count, CountOrZero
from longshort.sweep.manifest.document import Node
from longshort.sweep.manifest.fields import Place, refuse_unknown

RECORD = "longshort.json"
MOST_REVISIONS = 10_000  # more is a mistake in the rule
COUNT: TypeAdapter[int] = TypeAdapter(Count)
STEP: TypeAdapter[int] = TypeAdapter(CountOrZero)


def folders(place: Place, node: Node) -> list[str]:
    """Absolute paths of the finished checkpoints that one or more globs match, each once.

    Raises:
        UserError: a glob matches none.
    """
    patterns = node.sequence() if node.is_sequence else [node]
    if not patterns:
        raise node.error("the list is empty. Give a glob, such as checkpoints/*")
    found: list[str] = []
    for pattern in patterns:
        name = pattern.text()
        matches = [place.path(match) for match in place.matches(name) if _is_finished(Path(match))]
        if not matches:
            raise pattern.error(
                f"'{name}' matches no folder with a config.json in {place.folder}. Create it, or correct the glob",
                "not_found",
            )
        found += [match for match in matches if match not in found]
    return found


def _is_finished(folder: Path) -> bool:
    """Whether it holds a checkpoint; training calls an unfinished one .partial."""
    return folder.suffix != ".partial" and any((folder / name).is_file() for name in ("config.json", RECORD))


def own_record(checkpoint: str) -> dict[str, Any]:
    """The fields that a local checkpoint of `longshort train` records about itself; none for another checkpoint.

    Raises:
        UserError: its record is damaged.
    """
    if not Path(checkpoint).is_absolute():
        return {}
    file = Path(checkpoint) / RECORD
    if not os.path.isfile(file):  # unlike Path.is_file, also False for a name that is too long
        return {}
    try:
        record = read_json(file)
        base = _base(record)
        numbers = {
            "params": record["model"]["num_parameters"],
            "train_tokens": record["tokens_seen"],
            "train_length": record["train_length"],
        }
        if any(type(number) is not int or number < 1 for number in numbers.values()):
            raise ValueError
        return {"family": Path(base or "").name or Path(checkpoint).name} | numbers
    except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file} is damaged or not a record of 'longshort train'. Remove it, and give family, params and "
            "train_length in the manifest.",
            "data",
        ) from error


def shared_families(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """A warning for each family that several folders or bases share only because their last names are equal."""
    origins: dict[str, dict[str, None]] = {}
    for checkpoint in checkpoints:
        origin = checkpoint.pretrained
        with suppress(UserError):  # no record
            origin = _base(read_json(Path(origin) / RECORD)) or origin
        name = Path(origin).name
        if checkpoint.family in (None, name):
            place = os.path.realpath(origin) if os.path.isdir(origin) else os.path.normpath(origin)
            origins.setdefault(name, {})[place] = None
    return notes_on_families({name: list(shared) for name, shared in origins.items()})


def _base(record: Any) -> str | None:
    """The checkpoint that training started from; the record's own `base` may be a config to initialize from."""
    base: str | None = record.get("config", record).get("base")
    return base


def revisions(parts: Mapping[str, Node]) -> list[tuple[str, dict[str, Any]]]:
    """Each revision of an entry, with the fields that follow from it.

    Raises:
        UserError: there is none, or the rule for them is wrong.
    """
    if "revision" in parts and "revisions" in parts:
        raise parts["revisions"].error("give revision or revisions, not both")
    if "revisions" not in parts:
        return [(parts["revision"].text() if "revision" in parts else "main", {})]
    node = parts["revisions"]
    found = _by_rule(node) if node.is_mapping else [(name, {}) for name in node.texts()]
    if not found:
        raise node.error("there is no revision. Name at least one, or remove this field for main")
    return found


def _by_rule(node: Node) -> list[tuple[str, dict[str, Any]]]:
    rule = node.mapping()
    refuse_unknown(rule, ("template", "values", "first", "last", "every", "tokens_per_step"))
    template = rule["template"].text() if "template" in rule else "step{}"
    if template.count("{}") != 1:
        raise rule["template"].error(f"'{template}' must hold one {{}}, for the step")
    steps: range | list[int]
    if ("values" in rule) == bool({"first", "last", "every"} & rule.keys()):
        raise node.error("give either values, or first, last and every")
    if "values" in rule:
        steps = [value.read(STEP) for value in rule["values"].sequence()]
    else:
        for name in ("first", "last", "every"):
            if name not in rule:
                raise node.error(f"'{name}' is missing. Give first, last and every")
        steps = range(rule["first"].read(STEP), rule["last"].read(STEP) + 1, rule["every"].read(COUNT))
        if steps and (steps[-1] - steps[0]) // steps.step >= MOST_REVISIONS:
            raise node.error(f"these are more than {MOST_REVISIONS} revisions. Choose a greater 'every'")
    if "tokens_per_step" not in rule:
        return [(template.replace("{}", str(step)), {}) for step in steps]
    tokens = rule["tokens_per_step"].read(COUNT)
    # None at step 0, which has seen no token: the defaults' train_tokens does not apply to it.
    return [(template.replace("{}", str(step)), {"train_tokens": step * tokens or None}) for step in steps]
