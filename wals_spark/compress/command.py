"""``wals-spark compress``: its options and what it prints."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from wals_spark.errors import EXIT_DONE

METHOD_HELP = """\
svd        the least squared error (closed form)
frequency  rows weighted by how often their token occurs (closed form; --frequencies or --text)
logits     the least squared error of the logits (closed form; --text)
kronecker  rows by steepness of the loss, columns as logits (closed form; --text): lowest loss in our measurements
fisher     every entry by its squared gradients, by the WALS engine (--text)
wals       svd by alternating sweeps, its bound printed beside the loss"""


def add_parser(commands: Any) -> None:
    """Add the command to the parser of ``wals-spark``."""
    parser = commands.add_parser(
        "compress",
        help="compress the token embedding of a checkpoint",
        description="Compress the token embedding of a checkpoint to low rank; needs no Spark and no configuration.",
        epilog=f"methods:\n{METHOD_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--checkpoint", required=True, type=os.path.expanduser, metavar="DIR", help="directory or hub name"
    )
    parser.add_argument("--output", required=True, type=os.path.expanduser, metavar="DIR", help="what is written")
    parser.add_argument("--method", metavar="M", help="see below (default: the preset's)")
    parser.add_argument(
        "--preset",
        default="standard",
        metavar="P",
        help="standard: svd, rank 128 (default); extra_quality: wals, rank 512, 100 sweeps in float64, lambda 1e-4, "
        "tolerance 1e-7",
    )
    rank = parser.add_mutually_exclusive_group()
    rank.add_argument("--rank", type=int, metavar="N", help="default: the preset's")
    rank.add_argument("--target-mse", type=float, metavar="X", help="the least rank with so small an error per entry")
    rank.add_argument("--target-bytes", type=int, metavar="N", help="the greatest rank that fits")
    parser.add_argument(
        "--format",
        default="dense",
        metavar="F",
        help="dense: a stock checkpoint (default); factorised: smaller, loads with trust_remote_code; plugin: smaller, "
        "loads into the stock classes with wals_spark.compress.plugin",
    )
    parser.add_argument(
        "--text",
        type=os.path.expanduser,
        metavar="PATH",
        help="text like the model's: .txt, or Parquet with a column text",
    )
    parser.add_argument(
        "--frequencies", metavar="PATH", help="a table with token_id and count, or text (default: counted in --text)"
    )
    parser.add_argument("--sequences", type=int, default=512, metavar="N", help="of 128 tokens of --text to measure on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is empty or an earlier result")


def run_compress(options: argparse.Namespace) -> int:
    """Compress as asked and print the table."""
    from wals_spark.compress.comparison import format_table
    from wals_spark.compress.compress_checkpoint import CompressionRequest, compress_checkpoint

    names = CompressionRequest.__dataclass_fields__.keys() & vars(options).keys()
    result = compress_checkpoint(CompressionRequest(**{name: getattr(options, name) for name in names}))
    fit = result.manifest["fit"]
    printed = format_table(result.choices)
    if "losses" in fit:
        printed.append(f"{len(fit['losses'])} half-sweeps, loss {fit['losses'][0]:.6g} -> {fit['losses'][-1]:.6g}")
    if "bound" in fit:
        above = fit["error"] / fit["bound"] - 1 if fit["bound"] > 0 else 0.0
        printed.append(
            f"squared error {fit['error']:.10g}; the SVD's, which nothing of this rank beats, {fit['bound']:.10g} "
            f"({above:.2g} less)"
        )
    printed.append(f"* written to {options.output} ({options.format})")
    sys.stdout.write("\n".join(printed) + "\n")
    return EXIT_DONE
