"""The command line ``wals-spark <command>``, one function for each command; ``jobs/*.py`` call it too.

Exit codes: 0 done or already done, 1 bug, 2 bad configuration or input, 3 quality gate, 75 transient.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import wals_spark
from wals_spark.checkpoints.pack_command import add_pack_parsers
from wals_spark.compress.command import add_parser as add_compress
from wals_spark.config import Config, load_config, reference_markdown
from wals_spark.errors import EXIT_BUG, EXIT_DONE, EXIT_GATE, EXIT_TRANSIENT, ConfigError, WalsSparkError
from wals_spark.pipeline import STAGES, run_stages
from wals_spark.progress import setup_logging
from wals_spark.stage import Context
from wals_spark.stage_outputs import CooccurrenceOutputs, outputs_of

logger = logging.getLogger(__name__)

HELP = {
    "corpus": "read, check and clean the documents",
    "vocabulary": "tokenise and count tokens",
    "cooccurrence": "count co-occurrences, exactly",
    "train": "factorise the counts by WALS",
    "export": "write the factors for other tools",
    "neighbours": "nearest neighbours of tokens",
    "states": "hidden states of masked tokens, for inject.mode fit",
    "inject": "fit rows of a checkpoint to the corpus, or put the factors into it",
    "verify": "prove what an injection changed",
    "evaluate": "measure, compare, write the report",
    "pipeline": "all stages, each only where it is needed",
}


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; the parsed options carry its function as ``execute``."""
    parser = argparse.ArgumentParser(
        prog="wals-spark",
        description="Exact co-occurrence counts, WALS factors and better RoBERTa checkpoints, on Spark.",
        epilog="Exit codes: 0 done or already done, 1 bug, 2 bad configuration or input, 3 quality gate, "
        "75 transient (run it again).",
    )
    parser.add_argument("--version", action="version", version=f"wals-spark {wals_spark.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_stages(commands)
    _add_batch_commands(commands)
    _add_compare(commands)
    _add_extend_tokenizer(commands)
    add_compress(commands)
    commands.choices["compress"].set_defaults(execute=_compress)
    add_pack_parsers(commands)
    commands.choices["pack"].set_defaults(execute=_pack)
    commands.choices["apply"].set_defaults(execute=_apply)
    _add_config(commands)
    demo = commands.add_parser("demo", help="the whole pipeline on the documentation of your installed packages")
    demo.add_argument(
        "--directory", default="demo", type=os.path.expanduser, help="where everything goes (default: demo)"
    )
    demo.set_defaults(execute=_demo)
    return parser


def _add_stages(commands: Any) -> None:
    for name in (*STAGES, "pipeline"):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name].capitalize() + ".")
        command.set_defaults(execute=_pipeline if name == "pipeline" else _stage)
        _add_configuration(command)
        command.add_argument("--force", action="store_true", help="run even what is already done")
        if name in ("train", "pipeline"):
            command.add_argument(
                "--batches", dest="train_batches", metavar="A,B|all", help="batches to train on (train.batches)"
            )
        if name == "neighbours":
            command.add_argument("--tokens", metavar="A,B", help="tokens to look up (neighbours.tokens)")
        if name == "verify":
            command.add_argument(
                "directory",
                nargs="?",
                type=os.path.expanduser,
                help="an injected checkpoint; none = the one of the run",
            )
            command.add_argument(
                "--base",
                type=os.path.expanduser,
                metavar="CKPT",
                help="with a directory: the checkpoint it was made from",
            )
            command.set_defaults(execute=_verify)
        if name == "cooccurrence":
            command.add_argument("--explain", action="store_true", help="print the plan and count nothing")
            command.set_defaults(execute=_cooccurrence)
        if name == "states":
            command.add_argument(
                "--explain", action="store_true", help="print passes, bytes and hours, compute nothing"
            )
            command.set_defaults(execute=_states)
        if name in ("evaluate", "pipeline"):
            command.add_argument("--gate", action="store_true", help="exit 3 on a regression (evaluate.gate)")


def _add_batch_commands(commands: Any) -> None:
    compact = commands.add_parser("compact", help="fold batches of counts into one, their exact sum")
    _add_configuration(compact)
    compact.add_argument("--batches", default="all", metavar="A,B|all", help="what to fold (default: all)")
    compact.add_argument("--into", required=True, metavar="ID", help="the batch that holds the sum")
    compact.set_defaults(execute=_compact)
    drop = commands.add_parser("drop-batch", help="remove the batch --batch-id from the counts")
    _add_configuration(drop)
    drop.set_defaults(execute=_drop_batch)
    maintain = commands.add_parser("maintain", help="compact small files and remove old versions of the tables")
    _add_configuration(maintain)
    maintain.add_argument(
        "--retain-hours", type=float, default=168.0, metavar="H", help="keep old versions so long (default: 168)"
    )
    maintain.set_defaults(execute=_maintain)


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="flag rows of any two checkpoints that moved unlike the others",
        description="Flag embedding rows that moved unlike the others between two checkpoints of one vocabulary, "
        "whoever made them: signs of embedding poisoning.",
        epilog="Exit codes: 0 no row is flagged, 3 some are, 2 the checkpoints cannot be compared.",
    )
    compare.add_argument("before", type=os.path.expanduser, help="a checkpoint: directory or hub name")
    compare.add_argument("after", type=os.path.expanduser, help="what became of it")
    compare.set_defaults(execute=_compare)


def _add_extend_tokenizer(commands: Any) -> None:
    extend = commands.add_parser(
        "extend-tokenizer",
        help="add the domain's words to a checkpoint's tokenizer",
        description="Choose the words that the tokenizer splits and the corpus is full of (count x (pieces - 1) tokens "
        "saved), and write the tokenizer with them added, for inject.mode extend.",
    )
    extend.set_defaults(execute=_extend_tokenizer)
    _add_configuration(extend)
    extend.add_argument("--checkpoint", metavar="CKPT", help="whose tokenizer (inject.checkpoint)")
    extend.add_argument(
        "--output", required=True, type=os.path.expanduser, metavar="DIR", help="directory to write; must not exist"
    )
    source = extend.add_mutually_exclusive_group()
    source.add_argument("--batches", metavar="A,B|all", help="choose from their documents (default: corpus.batch_id)")
    source.add_argument(
        "--text", nargs="+", type=os.path.expanduser, metavar="FILE", help="choose from UTF-8 text files instead"
    )
    source.add_argument(
        "--word-list", type=os.path.expanduser, metavar="FILE", help="add the words of this file, one per line"
    )
    extend.add_argument("--words", type=int, default=1000, metavar="N", help="how many to choose (default: 1000)")
    extend.add_argument(
        "--min-count", type=int, default=20, metavar="N", help="rarer words are not chosen (default: 20)"
    )


def _add_config(commands: Any) -> None:
    show = commands.add_parser("config", help="show the resolved configuration or the reference of all keys")
    _add_configuration(show)
    kind = show.add_mutually_exclusive_group()
    kind.add_argument("--show", action="store_true", help="print the resolved configuration (default)")
    kind.add_argument("--reference", action="store_true", help="print every key with its type, default and meaning")
    show.set_defaults(execute=_config)


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=os.path.expanduser, metavar="FILE", help="YAML file; conf/ has examples")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override section.key")
    parser.add_argument("--warehouse", metavar="DIR", help="directory of all tables")
    parser.add_argument("--run-id", metavar="ID", help="names the run; the same on every retry")
    parser.add_argument("--batch-id", metavar="ID", help="names the increment of documents (corpus.batch_id)")


def _configuration(options: argparse.Namespace) -> Config:
    flags = {"warehouse": options.warehouse, "run_id": options.run_id, "corpus.batch_id": options.batch_id}
    if getattr(options, "train_batches", None):
        flags["train.batches"] = options.train_batches
    if getattr(options, "checkpoint", None):
        flags["inject.checkpoint"] = options.checkpoint
    if getattr(options, "gate", False):
        flags["evaluate.gate"] = True
    if getattr(options, "tokens", None):
        flags["neighbours.tokens"] = [token for token in options.tokens.split(",") if token]
    return load_config(options.config, options.set, flags)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code instead of raising.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; none = those of the process.
    """
    setup_logging()
    try:
        options = build_parser().parse_args(argv)
    except SystemExit as exit_:  # argparse exits by itself; its code for bad usage is ours
        return int(exit_.code or 0)
    try:
        return int(options.execute(options))
    except WalsSparkError as error:
        logger.error("%s: %s", type(error).__name__, error)
        logger.debug("where it was raised", exc_info=True)
        return error.exit_code
    except KeyboardInterrupt:
        logger.error("interrupted; run the same command again, it continues from what is done")
        return EXIT_TRANSIENT
    except Exception:
        logger.exception("a bug in wals_spark, or in something it relies on; please report the traceback")
        return EXIT_BUG


def _stage(options: argparse.Namespace) -> int:
    run_stages(_configuration(options), [options.command], force=options.force)
    return EXIT_DONE


def _pipeline(options: argparse.Namespace) -> int:
    config = _configuration(options)
    logger.info("configuration %s of run %s:\n%s", config.fingerprint, config.run_id, config.to_yaml().rstrip())
    run_stages(config, force=options.force)
    return EXIT_DONE


def _cooccurrence(options: argparse.Namespace) -> int:
    if not options.explain:
        return _stage(options)
    from wals_spark.cooccurrence.explain import explain

    with _locked_context(_configuration(options)) as context:
        sys.stdout.write("\n".join(explain(context)) + "\n")
    return EXIT_DONE


def _states(options: argparse.Namespace) -> int:
    if not options.explain:
        return _stage(options)
    from wals_spark.inject.fit.explain import explain_states

    with _locked_context(_configuration(options)) as context:
        sys.stdout.write("\n".join(explain_states(context)) + "\n")
    return EXIT_DONE


def _verify(options: argparse.Namespace) -> int:
    if not options.directory and not options.base:
        return _stage(options)
    from wals_spark.compress.verify import verify_any_format

    if not options.directory:
        raise ConfigError(
            "--base says what a directory was made from, but no directory is given: wals-spark verify DIR --base CKPT. "
            "Without both, the checkpoint of the run is verified against inject.checkpoint"
        )
    report = verify_any_format(options.directory, options.base)
    sys.stdout.write("\n".join(report.lines()) + "\n")
    return EXIT_DONE if report.passed else EXIT_GATE


@contextmanager
def _locked_context(config: Config) -> Iterator[Context]:
    """The context of a command on the table of counts that is no stage, under the lock of its run."""
    from wals_spark.cluster.failures import translated

    context = Context(config)
    try:
        with context.run.locked(), translated():
            yield context
    finally:
        context.stop()


def _compact(options: argparse.Namespace) -> int:
    from wals_spark.cooccurrence.batches import compact

    names = [name for name in options.batches.split(",") if name]
    with _locked_context(_configuration(options)) as context:
        outputs = outputs_of(compact(context, options.into, names), CooccurrenceOutputs)
        logger.info("compact: batch %s holds %s non-zeros", options.into, f"{outputs['nnz']:,}")
    return EXIT_DONE


def _drop_batch(options: argparse.Namespace) -> int:
    from wals_spark.cooccurrence.batches import drop_batch

    config = _configuration(options)
    batch_id = config.corpus.batch_id
    with _locked_context(config) as context:
        gone = drop_batch(context, batch_id)
        logger.info("drop-batch: %s", f"{batch_id} removed" if gone else "there was nothing to drop")
    return EXIT_DONE


def _maintain(options: argparse.Namespace) -> int:
    from wals_spark.cooccurrence.batches import maintain

    with _locked_context(_configuration(options)) as context:
        for table, counts in maintain(context, options.retain_hours).items():
            logger.info("maintain: %s: %s", table, ", ".join(f"{name} {count}" for name, count in counts.items()))
    return EXIT_DONE


def _extend_tokenizer(options: argparse.Namespace) -> int:
    from wals_spark.inject.vocabulary.command import run_extend_tokenizer

    config = _configuration(options)
    batches = options.batches.split(",") if options.batches else [config.corpus.batch_id]
    written = run_extend_tokenizer(
        config,
        options.output,
        most=options.words,
        min_count=options.min_count,
        batches=batches,
        texts=options.text or (),
        listing=options.word_list,
    )
    logger.info("extend-tokenizer: %s", written)
    return EXIT_DONE


def _compress(options: argparse.Namespace) -> int:
    from wals_spark.compress.command import run_compress

    return run_compress(options)


def _pack(options: argparse.Namespace) -> int:
    from wals_spark.checkpoints.pack_command import run_pack

    return run_pack(options)


def _apply(options: argparse.Namespace) -> int:
    from wals_spark.checkpoints.pack_command import run_apply

    return run_apply(options)


def _config(options: argparse.Namespace) -> int:
    sys.stdout.write(reference_markdown() if options.reference else _configuration(options).to_yaml())
    return EXIT_DONE


def _demo(options: argparse.Namespace) -> int:
    from wals_spark.demo import run_demo

    run_demo(options.directory)
    return EXIT_DONE


def _compare(options: argparse.Namespace) -> int:
    from wals_spark.checkpoints.outliers import checkpoint_tokens, compare_checkpoints

    found = compare_checkpoints(options.before, options.after)
    lines = found.lines(checkpoint_tokens(options.after))
    sys.stdout.write("\n".join([f"{found.changed:,} rows differ, {len(lines)} of them suspicious", *lines]) + "\n")
    return EXIT_GATE if lines else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
