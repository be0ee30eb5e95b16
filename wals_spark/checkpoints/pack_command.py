"""``wals-spark pack`` and ``wals-spark apply``: their options and what they print."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from wals_spark.errors import EXIT_DONE, ConfigError


def add_pack_parsers(commands: Any) -> None:
    """Add the commands ``pack`` and ``apply`` to the parser of ``wals-spark``."""
    pack = commands.add_parser(
        "pack",
        help="make a domain pack of what an injection changed",
        description="Write the rows and head-bias entries that an injection moved as one file, a domain pack; needs no "
        "Spark and no configuration. The checkpoint is verified against its base first.",
    )
    pack.add_argument("directory", metavar="DIR", help="an injected checkpoint with the vocabulary of its base")
    pack.add_argument("--base", required=True, metavar="CKPT", help="what it was made from: directory or hub name")
    pack.add_argument("--output", required=True, metavar="FILE", help="the pack, a safetensors file")
    pack.add_argument(
        "--dtype",
        default="int8",
        choices=("int8", "fp16", "fp32"),
        help="int8: one byte a number, one scale a row (default); fp16; fp32: nothing is lost",
    )
    pack.add_argument("--overwrite", action="store_true", help="replace a file that is a domain pack")
    apply = commands.add_parser(
        "apply",
        help="make the checkpoint of a domain from its pack and the base",
        description="Add domain packs to the checkpoint that they were made for: differences times strengths, summed; "
        "needs no Spark and no configuration.",
    )
    apply.add_argument("packs", nargs="+", metavar="PACK", help="domain packs of one base")
    apply.add_argument("--checkpoint", required=True, metavar="BASE", help="that base: directory or hub name")
    apply.add_argument("--output", required=True, metavar="DIR", help="what is written")
    apply.add_argument(
        "--strength",
        default="1",
        metavar="S[,S...]",
        help="one for all packs or one for each; 0 is the base, 1 the domain (default); --strength=-1 takes it away",
    )
    apply.add_argument("--overwrite", action="store_true", help="replace an output that is empty or an earlier result")


def run_pack(options: argparse.Namespace) -> int:
    """Make a pack as asked, and print what it holds."""
    from wals_spark.checkpoints.domain_pack import describe_pack
    from wals_spark.checkpoints.pack_making import check_pack_output, make_pack, publish_pack

    check_pack_output(options.output, options.directory, replace=options.overwrite)
    pack = make_pack(options.directory, options.base, options.dtype)
    size = publish_pack(options.output, options.directory, pack, replace=options.overwrite)
    sys.stdout.write(f"{describe_pack(pack)}, {size / 1e6:,.1f} MB: {options.output}\n")
    return EXIT_DONE


def run_apply(options: argparse.Namespace) -> int:
    """Apply packs as asked, and print what moved."""
    from wals_spark.checkpoints.pack_application import apply_packs

    manifest = apply_packs(
        options.packs,
        options.checkpoint,
        options.output,
        strengths=parse_strengths(options.strength),
        overwrite=options.overwrite,
    )
    fit, embedding = manifest["fit"], manifest["embedding"]
    lines = [
        f"{embedding['rows_changed']:,} of {embedding['shape'][0]:,} rows changed, head bias "
        f"{'moved' if manifest['head_bias']['changed'] else 'as it was'}: {options.output}"
    ]
    if len(manifest["packs"]) > 1:
        lines.append(
            f"{fit['rows_of_several_packs']:,} rows and {fit['biases_of_several_packs']:,} biases are in several packs "
            "of a strength that is not 0: their differences add"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_DONE


def parse_strengths(text: str) -> list[float]:
    """Numbers with commas between them; `ConfigError` for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--strength is {text!r:.60}, expected numbers with commas between them") from None
