"""What brings a domain into a masked-LM model, at what cost: fitted rows beside training, at equal data.

    injection.py prepare --checkpoint DIR --corpora DIR --output TEXTS        texts as token ids
    injection.py run --checkpoint DIR --data TEXTS --output RESULTS.jsonl     a JSON line for each arm
    injection.py run --adapted ...                    the same from a base trained on 4,000 general sequences
    injection.py table RESULTS.jsonl --plot RESULTS.png

`run` needs torch and transformers, neither Spark, Java nor a network; it leaves out what RESULTS.jsonl has already, so
that it can be stopped and started again. With ``--adapted`` the adapted base's weights are kept beside it, as
RESULTS.adapted.safetensors. `injection_arms` says what is measured, `injection_training` how the trained
arms are trained, `injection_text` how texts are sampled.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from injection_text import GENERAL, SplitText, read_split, read_texts, split_text, write_split

from wals_spark.errors import WalsSparkError

ARMS = "base,bias,fit-1,fit-4,fit-8,embeddings-1,embeddings-3,full-0.5,full-1,full-3,general-1"  # in the order of cost
CORPORA = {"biomedical": "biomedical.parquet", "scotus": "scotus.parquet", GENERAL: "enwiki/part-*.parquet"}
KEY = "checkpoint", "adapted", "domain", "seed", "arm", "sequences", "test_sequences"


def prepare(options: argparse.Namespace) -> None:
    """Write the token ids of each text."""
    from wals_spark.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(options.checkpoint))
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (*options.domains, GENERAL):
        paths = sorted(options.corpora.glob(CORPORA.get(name, f"{name}.parquet")))
        train = options.general_train if name == GENERAL else options.train
        text = split_text(read_texts(paths), tokenizer, options.length, train, options.test)
        write_split(options.output / f"{name}.safetensors", text)
        counts = {"training": len(text.training), "test": len(text.test)}
        print(json.dumps({"text": name, **counts, **text.facts}), flush=True)


def run(options: argparse.Namespace) -> None:
    """Compute the arms that are not there yet."""
    import torch
    from injection_arms import Comparison, Setting, parse_arm

    from wals_spark.checkpoints.checkpoint import open_checkpoint, protected_ids
    from wals_spark.mlm.data import special_ids
    from wals_spark.mlm.loss import load_masked_lm
    from wals_spark.tokenizer import load_tokenizer

    torch.set_num_threads(options.threads)
    arms = [parse_arm(name) for name in options.arms]
    tokenizer = load_tokenizer(str(options.checkpoint))
    opened = open_checkpoint(str(options.checkpoint))
    protected = protected_ids(tokenizer, opened.config, opened.vocab_size)
    setting = Setting(
        special_ids(tokenizer), protected, options.sequences, options.precision,
        options.training_precision == "bf16", options.threads,
    )  # fmt: skip
    texts = {}
    for name in (*options.domains, GENERAL):
        text = read_split(options.data / f"{name}.safetensors")
        test = text.test.take(slice_of(len(text.test), options.test_sequences))
        texts[name] = SplitText(text.training, test, text.facts)
    common = {
        "checkpoint": options.checkpoint.resolve().name, "adapted": options.adapted, "sequences": options.sequences,
        "test_sequences": options.test_sequences, "device": device_name(options.device),
        "precision": options.precision, "training_precision": options.training_precision, "threads": options.threads,
    }  # fmt: skip
    done = {key_of(line) for line in read_lines(options.output)}

    def missing(arm: Any, seed: int) -> list[str]:
        wanted = [{**common, "domain": domain, "seed": seed, "arm": arm.name} for domain in options.domains]
        return [line["domain"] for line in wanted if key_of(line) not in done]

    todo = [(seed, arm) for seed in options.seeds for arm in arms if missing(arm, seed)]
    if not todo:
        return
    comparison = Comparison(load_masked_lm(str(options.checkpoint)).to(options.device), texts, setting)
    if options.adapted:
        comparison.adapt(0, options.output.with_suffix(".adapted.safetensors"))
    for seed, arm in todo:
        later = [
            int(other.amount) for other_seed, other in todo if other_seed == seed and other.kind in ("bias", "fit")
        ]
        started = time.perf_counter()
        for found in comparison.lines(arm, missing(arm, seed), seed, max(later, default=1)):
            line = {"arm": arm.name, "seed": seed, **common, **found}
            line["wall_s"] = round(time.perf_counter() - started, 2)
            append_line(options.output, line)
            started = time.perf_counter()


def slice_of(size: int, wanted: int) -> Any:
    """Numbers of the first sequences."""
    import numpy as np

    return np.arange(min(size, wanted))


def device_name(device: str) -> str:
    """The name of the processor, for the record."""
    if not device.startswith("cuda"):
        return f"cpu ({os.cpu_count()} cores)"
    import torch

    return str(torch.cuda.get_device_name(device))


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a line of the results the only one of its kind."""
    return tuple(line[name] for name in KEY)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of results, none where there is no file; a last line that was cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        if line.endswith("}"):
            yield json.loads(line)


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line to a file, after a line break where the last one was cut off."""
    text = json.dumps(line)
    broken = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a") as file:
        file.write(("\n" if broken else "") + text + "\n")
    print(text, flush=True)


def table(options: argparse.Namespace) -> None:
    """Print the results as Markdown, and draw them."""
    import injection_report

    lines = [line for path in options.results for line in read_lines(path)]
    print(injection_report.markdown(lines))
    if options.plot:
        injection_report.draw(lines, options.plot)


def comma_separated(text: str) -> list[str]:
    """A list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """Whole numbers with commas."""
    return [int(name) for name in comma_separated(text)]


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = top.add_subparsers(dest="step", required=True)
    one = steps.add_parser("prepare", help="texts to token ids")
    one.add_argument("--checkpoint", type=Path, required=True, help="directory with the tokenizer")
    one.add_argument(
        "--corpora", type=Path, required=True, help="directory of biomedical.parquet, scotus.parquet, enwiki/"
    )
    one.add_argument("--output", type=Path, required=True, help="directory for the token ids")
    one.add_argument("--domains", type=comma_separated, default=["biomedical", "scotus"])
    one.add_argument("--length", type=int, default=128)
    one.add_argument("--train", type=int, default=8000, help="training sequences of a domain at most")
    one.add_argument("--general-train", type=int, default=12000)
    one.add_argument("--test", type=int, default=400, help="test sequences of each text at most")
    two = steps.add_parser("run", help="compute arms")
    two.add_argument("--checkpoint", type=Path, required=True)
    two.add_argument("--data", type=Path, required=True, help="what `prepare` wrote")
    two.add_argument("--output", type=Path, required=True, help="file of JSON lines; lines are added")
    two.add_argument("--domains", type=comma_separated, default=["biomedical", "scotus"])
    two.add_argument("--arms", type=comma_separated, default=comma_separated(ARMS), help=f"default: {ARMS}")
    two.add_argument("--sequences", type=int, default=2000)
    two.add_argument("--test-sequences", type=int, default=400)
    two.add_argument("--seeds", type=numbers, default=[0])
    two.add_argument("--adapted", action="store_true", help="from a base trained on 4,000 general sequences first")
    two.add_argument("--device", default="cpu")
    two.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="of states and evaluation")
    two.add_argument("--training-precision", choices=("fp32", "bf16"), default="fp32")
    two.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    three = steps.add_parser("table", help="results as Markdown and as a picture")
    three.add_argument("results", type=Path, nargs="+")
    three.add_argument("--plot", type=Path, help="a .png or .svg file")
    return top


def main(arguments: Iterable[str] | None = None) -> int:
    """Parse and do a step."""
    options = parser().parse_args(None if arguments is None else list(arguments))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        {"prepare": prepare, "run": run, "table": table}[options.step](options)
    except WalsSparkError as error:
        print(f"injection: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
