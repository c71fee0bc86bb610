"""Compare ways to measure the numerical floor of the divergences with what half precision really adds to them.

    python scripts/compare_floors.py checkpoints/smollm2 checkpoints/gemma3 --corpus books.jsonl -o results/floors
    python scripts/compare_floors.py checkpoints/smollm2 --corpus books.jsonl --dtypes float16 --lengths 512 -o floors

Each cell is one document at one length in one dtype. The two contexts of the misalignment are evaluated in float32, in
float32 with the weights rounded to the half-precision dtype, and in half precision. Rounding the weights changes the
model rather than its evaluation, so the true excess is half precision minus float32 with the same rounded weights. The
candidates for the floor are divergences from a second forward pass:

    aligned    over the shorter context, with the position ids that its tokens have in the longer context; this is what
               longshort eval reports
    shift C    over the longer context, with position ids that are greater by C
    masked     over the longer context after one masked token, with the same position ids
    reread     over both contexts in float32, on some documents; their excess predicts that of the others

LM heads are multiplied in float32 throughout, and must be plain matrices. Cells that exist in the output folder are not
measured again, so the command can be interrupted and repeated, also with more documents or lengths. Several checkpoints
can be measured at the same time by several commands. The table contains all cells of the output folder.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
from floors.reading import Checkpoint, measure
from floors.table import markdown, not_finite, summary

from longshort.corpora import Document, open_corpus, select
from longshort.errors import UserError, one_line_for_user_errors
from longshort.results import write_atomically
from longshort.scoring.offsets import draw_offsets

CELL = ["model", "dtype", "length", "document", "products"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the cells and the table."""
    options = parse(arguments)
    documents = select(open_corpus(options.corpus), options.num_docs, max(options.lengths) + 1)
    for folder in options.checkpoints:
        measure_checkpoint(folder, documents, options)
    frame = pd.concat([pd.read_csv(path) for path in sorted(options.output.glob("cells-*.csv"))])
    table = summary(frame)
    text = markdown(table, f"python scripts/compare_floors.py {shlex.join(shown(options))}", not_finite(frame))
    write_atomically(options.output / "table.csv", table.to_csv(index=False, float_format="%.6g"))
    write_atomically(options.output / "table.md", text)
    print(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, and in `given` the arguments themselves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="folders with safetensors")
    parser.add_argument(
        "--corpus", required=True, help="corpus, as for longshort eval: a file, folder, glob or hub dataset"
    )
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[256, 512, 1024],
        help="context lengths in tokens (default: %(default)s)",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("bfloat16", "float16"),
        default=["bfloat16", "float16"],
        help="half-precision dtypes (default: both)",
    )
    parser.add_argument("--num-docs", type=int, default=4, help="number of documents (default: %(default)s)")
    parser.add_argument(
        "--shifts",
        type=int,
        nargs="+",
        default=[1, 1000],
        help="constants C of the candidate shift C (default: %(default)s)",
    )
    parser.add_argument(
        "--positions",
        type=int,
        default=256,
        help="in-range positions compared in each document, evenly spaced (default: %(default)s)",
    )
    parser.add_argument(
        "--native",
        action="store_true",
        help="multiply in half precision, which is slow on CPUs (default: multiply in float32 and round)",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads (default: one per core)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("results/floors"),
        help="folder of cells and tables (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    return options


def shown(options: argparse.Namespace) -> Iterator[str]:
    """The arguments as the table shows them: names of files instead of paths of this machine."""
    yield from (folder.name for folder in options.checkpoints)
    yield from ("--corpus", Path(options.corpus).name)
    for name in ("lengths", "dtypes", "shifts"):
        yield from (f"--{name}", *map(str, getattr(options, name)))
    yield from ("--num-docs", str(options.num_docs), "--positions", str(options.positions))


def measure_checkpoint(folder: Path, documents: list[Document], options: argparse.Namespace) -> None:
    """Measure the missing cells of one checkpoint, and keep them after each."""
    path = options.output / f"cells-{folder.name}.csv"
    frame = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=CELL)
    products = "native" if options.native else "float32"
    done = set(frame[CELL].itertuples(index=False, name=None))
    cells = [
        (folder.name, dtype, length, index, products)
        for dtype in options.dtypes
        for length in sorted(options.lengths)
        for index in range(len(documents))
    ]
    missing = [cell for cell in cells if cell not in done]
    if not missing:
        return
    checkpoint = Checkpoint(folder, options.native)
    for cell in missing:
        _, dtype, length, index, _ = cell
        tokens = torch.tensor(checkpoint.tokenizer(documents[index].text)["input_ids"][:length])
        if len(tokens) < length:
            raise UserError(
                f"document {index} of '{options.corpus}' has only {len(tokens)} tokens of {length}.", "text"
            )
        (offset,) = draw_offsets(0, index, length)
        values = measure(checkpoint, tokens, offset, options.positions, getattr(torch, dtype), options.shifts)
        rows = [dict(zip(CELL, cell, strict=True)) | {"offset": offset} | value for value in values]
        new = pd.DataFrame(rows)
        frame = pd.concat([frame, new]) if len(frame) else new
        write_atomically(path, frame.to_csv(index=False, float_format="%.8g"))
        print(*cell, *(f"{row['quantity']} {row['jeffreys']:.5f}" for row in rows), sep="  ", flush=True)


if __name__ == "__main__":
    one_line_for_user_errors()
    main()
