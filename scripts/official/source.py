"""Definitions from a checkout of official code, most of which does not import beside current libraries."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from longshort.errors import UserError

REPOSITORIES = {
    "clex": "DAMO-NLP-SG/CLEX",
    "entropy-abf": "GAIR-NLP/Entropy-ABF",
    "longppl": "PKU-ML/LongPPL",
    "longqlora": "yangjianxin1/LongQLoRA",
    "longlora": "dvlab-research/LongLoRA",
    "yarn": "jquesnelle/yarn",
    "longrope": "microsoft/LongRoPE",
    "llama-models": "meta-llama/llama-models",
    "longshortalignment": "PKU-ML/LongShortAlignment",
}


class MissingName:
    """Stands in for a name that cannot be imported here, and raises ImportError where it is used."""

    def __init__(self, name: str, cause: str) -> None:
        self.__dict__["_why"] = f"{name} cannot be imported: {cause}"

    def __getattr__(self, name: str) -> NoReturn:
        raise ImportError(self.__dict__["_why"])

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ImportError."""
        raise ImportError(self.__dict__["_why"])


class Definitions(dict[str, Any]):
    """What a file defines, by name."""

    def __init__(self, names: Mapping[str, Any], checkout: str, path: Path) -> None:
        super().__init__(names)
        self.checkout, self.path = checkout, path

    def __missing__(self, name: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(
            f"{self.path} defines no {name}. Check out a commit that does, such as the one in the committed table.",
            "unsupported",
            self.checkout,
        )


@dataclass(frozen=True)
class Checkout:
    """A folder with one of `REPOSITORIES`."""

    name: str
    folder: Path

    @property
    def commit(self) -> str:
        """The commit that is checked out, its first seven digits; ``unknown`` outside of git."""
        command = ["git", "-C", str(self.folder), "rev-parse", "--short=7", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else "unknown"

    def text(self, file: str) -> str:
        """The content of a file, by its path within the checkout.

        Raises:
            UserError: the checkout has no such file.
        """
        path = self.folder / file
        if not path.is_file():
            raise UserError(
                f"{self.folder} has no {file}. Give a checkout of github.com/{REPOSITORIES[self.name]}.",
                "not_found",
                self.name,
            )
        return path.read_text("utf-8")

    def definitions(self, file: str, **replacements: Any) -> Definitions:
        """Return the functions, classes and constants that `file` defines at its top level.

        Other statements, such as those that change transformers, are not executed. An import that fails gives a
        `MissingName`.

        Args:
            file: path within the checkout.
            replacements: names that the file's imports and definitions do not overwrite.

        Raises:
            UserError: the checkout has no such file.
        """
        names: dict[str, Any] = {"__name__": Path(file).stem, **replacements}
        for node in ast.parse(self.text(file), file).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                _import(node, names, replacements)
            elif _defined_name(node) not in (None, *replacements):
                exec(compile(ast.Module([node], []), str(self.folder / file), "exec", dont_inherit=True), names)
        return Definitions(names, self.name, self.folder / file)


def _defined_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _import(node: ast.Import | ast.ImportFrom, names: dict[str, Any], replacements: Mapping[str, Any]) -> None:
    """Execute an import statement name by name, so that one which fails does not take the others along."""
    for alias in node.names:
        bound = alias.asname or alias.name.split(".")[0]
        if bound in replacements:
            continue
        single = type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})
        module = ast.fix_missing_locations(ast.Module([ast.copy_location(single, node)], []))
        try:
            exec(compile(module, "import", "exec", dont_inherit=True), names)
        except (ImportError, KeyError) as error:  # KeyError: a relative import outside of a package
            names[bound] = MissingName(bound, str(error))
