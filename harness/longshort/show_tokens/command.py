"""``longshort show-tokens``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

EPILOG = """Examples:

longshort show-tokens tokens.parquet

longshort show-tokens tokens.parquet --value gain --length 8192

longshort show-tokens tokens.parquet --document 0 --document 3 -o page.html
"""


def show_tokens_command(
    file: Annotated[  # not `readable`: the reader says why it is not, with exit code 1
        Path,
        typer.Argument(
            metavar="FILE", readable=False, help="Token file (Parquet) that longshort eval --save-tokens wrote."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="HTML file to write.  [default: FILE with the suffix .html]")
    ] = None,
    document: Annotated[
        list[str] | None,
        typer.Option(help="Name or index of a document to show; repeatable.  [default: the first document]"),
    ] = None,
    value: Annotated[
        str,
        typer.Option(metavar="[nll|gain|entropy|jeffreys]", help="Value that colours the tokens when the page opens."),
    ] = "nll",
    length: Annotated[
        int | None,
        typer.Option(help="Length of the window shown when the page opens, in tokens.  [default: the longest]"),
    ] = None,
) -> None:
    """Write an HTML page that shows the text of documents with each token coloured by NLL or another value.

    The page works without a network connection. Tokens can be coloured by NLL, by the NLL gain from the longer context,
    by entropy or by the Jeffreys divergence from the shorter context, at every length.
    """
    from longshort.show_tokens.page import write_page

    output = output or Path(f"{os.path.splitext(file)[0]}.html")
    size = write_page(file, output, documents=document or (), value=value, length=length)
    typer.echo(f"{output} ({size / 1e6:.1f} MB)")
