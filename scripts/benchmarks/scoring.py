"""What the benchmarks of scoring share: a random Llama, one measurement in a process of its own, table and JSON.

Ratios are medians over pairs of neighbouring runs. CPU seconds are of all threads together.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import (
    commit,
    limit_memory,
    machine_cpu_seconds,
    memory_now,
    memory_peak,
    out_of_memory,
    parser,
    ratio,
    spread,
    take_turns,
    write,
    written,
)
from benchmarks.gpu import card, rates

if TYPE_CHECKING:
    from torch import Tensor, nn

RATES = ("tokens/s", "of rate")
SPREAD = ("seconds (min–max)", "MiB", "time ×", "memory ×")
SETTINGS = ("intermediate", "heads", "kv_heads", "dtype", "runs")
FLOOR = "floor"  # work that no way of computing it can leave out


@dataclass(frozen=True)
class Benchmark:
    """Sides that do the same work.

    Attributes:
        name: of the module, and of its JSON.
        about: for --help.
        sides: what is measured; one of them may be FLOOR.
        references: of a side, those that it is set against.
        actions: from the options, the model and its tokens [1, N+1], what each side does; it returns a number by
            which the sides can be compared.
        cases: HIDDENxLAYERS:TOKENS,TOKENS …, by default.
        flops: of one window, where tokens per second and, on a GPU, the share of the card's measured matrix rate are
            wanted too. A window is a forward of at least half the case's tokens; shorter ones are probes.
    """

    name: str
    about: str
    sides: Sequence[str]
    references: Mapping[str, Sequence[str]]
    actions: Callable[[argparse.Namespace, nn.Module, Tensor], Mapping[str, Callable[[], float]]]
    cases: Sequence[str]
    flops: Callable[[argparse.Namespace], float] | None = None

    def main(self, arguments: list[str]) -> None:
        """Measure every side in every case, print the table, write the JSON.

        Cases measured before on the same machine, with the same versions and settings, stay in it.
        """
        import transformers  # noqa: F401  # loaded before the clock starts

        options = self._options(arguments)
        rows, measured = written(options, SETTINGS), []
        of_model = itertools.product(map(int, options.vocabulary.split(",")), options.attention.split(","))
        for case, (vocabulary, attention) in itertools.product(_cases(options.cases), list(of_model)):
            given = case | {"vocabulary": vocabulary, "attention": attention}
            one = argparse.Namespace(**vars(options) | given)
            sides = take_turns(list(self.sides), options.runs, partial(self._in_a_fork, one))
            row = given | {"commit": commit()} | self._summary(sides)
            if self.flops:
                for side in (side for side in self.sides if "error" not in row[side]):
                    row[side] |= rates(self.flops, one, sides[side][-1], row[side]["seconds_median"])
            measured.append(row)
            rows = sorted([*(known for known in rows if _case(known) != _case(row)), row], key=_case)
            write(rows, options, SETTINGS)  # what is measured is not lost if the rest is cut off
        self._show(measured, options)

    def _options(self, arguments: list[str]) -> argparse.Namespace:
        command = parser(self.name, self.about, of="processes per side and case")
        command.add_argument("--cases", nargs="+", default=self.cases, help="each HIDDENxLAYERS:TOKENS,TOKENS,…")
        command.add_argument("--vocabulary", default="32000,128256", help="sizes, comma-separated")
        command.add_argument("--intermediate", type=int, help="8/3 of hidden by default")
        command.add_argument("--heads", type=int, default=8)
        command.add_argument("--kv-heads", type=int, help="as many as heads by default")
        command.add_argument("--dtype", default="float32")
        command.add_argument("--attention", default="sdpa", help="implementations of transformers, comma-separated")
        return command.parse_args(arguments)

    def _in_a_fork(self, options: argparse.Namespace, side: str) -> dict[str, Any]:
        """A measurement in a process of its own, with the memory of no other, but without another's imports."""
        print(f"{side}, {options.hidden} × {options.layers}, {options.vocabulary}, {options.tokens} …", file=sys.stderr)
        context = multiprocessing.get_context("fork")  # nothing has run in the parent: no threads, no CUDA
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=lambda: sender.send(self._measure(options, side)))
        process.start()
        sender.close()
        try:
            result: dict[str, Any] = receiver.recv()
        except EOFError:
            result = {"error": "its process ended"}
        process.join()
        return result

    def _measure(self, options: argparse.Namespace, side: str) -> dict[str, Any]:
        import torch

        length = options.tokens
        model = random_llama(options, length)
        device = next(model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(97, 123, (1, length + 1), generator=generator).to(device)  # letters of a byte tokenizer
        with torch.no_grad():
            self.actions(options, model, tokens[:, :65])[side]()  # warm
            action = self.actions(options, model, tokens)[side]
            with reading(model) as reads:
                done = timed(action, device.type)
            return done | {"reads": reads} | (card(options.dtype) if device.type == "cuda" else {})

    def _summary(self, sides: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for side, runs in sides.items():
            if "error" in runs[-1]:
                row[side] = {"error": runs[-1]["error"]}
                continue
            row[side] = {}
            for key in ("seconds", "cpu_seconds", "others_cpu_seconds", "bytes"):
                row[side] |= spread(runs, key)
            row[side] |= {"value": runs[-1]["value"], "runs": len(runs)}
            for reference in self.references.get(side, ()):
                others = sides[reference]
                if "error" not in others[-1]:
                    row[side][f"time over {reference}"] = ratio(runs, others, "seconds")
                    row[side][f"cpu over {reference}"] = ratio(runs, others, "cpu_seconds")
                    memory = max(1, spread(others, "bytes")["bytes_median"])
                    row[side][f"memory over {reference}"] = row[side]["bytes_median"] / memory
        return row

    def _show(self, rows: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> None:
        """Print a table per case, no wider than 80 columns."""
        console = Console()
        for row in rows:
            console.print(self._table(row, options.dtype))
        cells = [row[side] for row in rows for side in self.sides if "error" not in row[side]]
        taken = max((cell["others_cpu_seconds_max"] / cell["seconds_max"] for cell in cells), default=0.0)
        about = "model: hidden size × layers, vocabulary; MiB: peak above the loaded model"
        console.print(about, f"other processes: at most {taken:.2f} processors beside any run", sep="\n")

    def _table(self, row: Mapping[str, Any], dtype: str) -> Table:
        model = f"random Llama {row['hidden']}×{row['layers']}, {row['vocabulary']:,}"
        attention = row.get("attention", "sdpa")
        kind = dtype if attention == "sdpa" else f"{dtype}, {attention}"
        table = Table(title=f"{self.name}, {model}, {kind}; {row['tokens']:,} tokens", title_justify="left")
        on_card = any(cell.get("of rate") for cell in row.values() if isinstance(cell, dict))
        # On a GPU the rates take the place of the spread and of the relative memory.
        columns = ("seconds", "MiB", "time ×", *RATES) if on_card else SPREAD
        for column in ("what", *columns):
            table.add_column(column, justify="right" if column == "MiB" else "left", no_wrap=True)
        for side in self.sides:
            cell = row[side]
            if "error" in cell:
                table.add_row(side, cell["error"])
                continue
            known = [name for name in self.references.get(side, ()) if f"time over {name}" in cell]
            shown = {
                "seconds": f"{cell['seconds_median']:.2f}",
                "seconds (min–max)": "{seconds_median:.2f} ({seconds_min:.2f}–{seconds_max:.2f})".format(**cell),
                "MiB": f"{cell['bytes_median'] / 2**20:,.0f}",
                "time ×": "\n".join(f"{cell[f'time over {name}']:.2f} {name}" for name in known),
                "memory ×": "\n".join(f"{cell[f'memory over {name}']:.3f}" for name in known),
            } | {name: f"{cell[name]:,.3g}" if cell.get(name) else "–" for name in RATES}
            table.add_row(side, *(shown[column] for column in columns))
        return table


def random_llama(options: argparse.Namespace, length: int) -> nn.Module:
    """A Llama with random weights, on the GPU where there is one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=int(options.vocabulary),
        hidden_size=options.hidden,
        intermediate_size=options.intermediate or options.hidden * 8 // 3,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads or options.heads,
        max_position_embeddings=length,
        dtype=options.dtype,
        attn_implementation=getattr(options, "attention", "sdpa"),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        return LlamaForCausalLM(config).to(getattr(torch, options.dtype)).eval()


def timed(action: Callable[[], float], device: str) -> dict[str, Any]:
    """Seconds, CPU seconds of this process and of all others, peak bytes above those held, what the action returns."""
    before = memory_now(device)
    limit_memory()
    start, processor, machine = time.perf_counter(), time.process_time(), machine_cpu_seconds()
    try:
        value = action()  # a float: a GPU has ended its work
    except (RuntimeError, MemoryError) as error:
        return out_of_memory(error)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - processor
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "others_cpu_seconds": max(0.0, machine_cpu_seconds() - machine - cpu_seconds),
        "bytes": memory_peak(device) - before,
        "value": value,
    }


@contextlib.contextmanager
def reading(model: nn.Module) -> Iterator[list[int]]:
    """The tokens of each forward while open, counted at the input embedding."""
    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]  # of every model of transformers
    reads: list[int] = []
    hook = embedding.register_forward_pre_hook(lambda module, inputs: reads.append(inputs[0].numel()))
    try:
        yield reads
    finally:
        hook.remove()


def forward_flops(case: argparse.Namespace) -> float:
    """Of a Llama's forward and head over all positions, two per multiplication; attention is causal."""
    kv_share = (case.kv_heads or case.heads) / case.heads
    intermediate = case.intermediate or case.hidden * 8 // 3
    layer = case.hidden**2 * (2 + 2 * kv_share) + 3 * case.hidden * intermediate
    weights = case.layers * layer + case.hidden * case.vocabulary
    return 2.0 * weights * case.tokens + 2.0 * case.layers * case.hidden * case.tokens**2


def head_product(model: nn.Module, rows: int) -> float:
    """The model's head over so many positions, as plain products of 256 rows, and nothing else."""
    import torch

    weight = model.lm_head.weight
    states = torch.ones(rows, weight.shape[1], dtype=weight.dtype, device=weight.device)
    return sum(float(torch.mm(part, weight.T)[0, 0]) for part in states.split(256))


def _case(row: Mapping[str, Any]) -> tuple[int | str, ...]:
    names = ("hidden", "layers", "tokens", "vocabulary")
    return (*(row[name] for name in names), str(row.get("attention", "sdpa")))


def _cases(texts: Sequence[str]) -> list[dict[str, int]]:
    """Hidden size, layers and tokens of each case."""
    found = []
    for text in texts:
        shape, _, tokens = text.partition(":")
        hidden, _, layers = shape.partition("x")
        found += [{"hidden": int(hidden), "layers": int(layers), "tokens": int(part)} for part in tokens.split(",")]
    return found
