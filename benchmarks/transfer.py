"""A whole new tokenizer, step 2: what mode ``transfer`` makes of a checkpoint, scored before and after training.

    python benchmarks/transfer.py --work DIR [--data DIR] [--model DIR] [--steps 0 100 400] [--rows factors omp ...]

`benchmarks/transfer_prepare.py` has made the work directory. Two tokenizers are compared on the same hidden words:
windows of held-out text are cut so that they fit both segmentations, 15 % of their words are hidden, all pieces of
each, the loss of a word is the sum over its pieces, and the figure is nats per byte of the hidden words. (A hidden
word shows how many pieces it has; with fewer pieces it shows less.) Training is the same for every arm: as many steps
on as many sequences of 128 tokens of counted domain text, in the arm's own tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
from transfer_prepare import DOMAIN, GENERAL, configuration, documents

from wals_spark.checkpoints import artifact, atomic_directory
from wals_spark.config import Config, InjectConfig
from wals_spark.factors.store import read_vectors
from wals_spark.inject.prepare import prepare_edit
from wals_spark.mlm.data import PackedSequences, SpecialIds, encode, mask_tokens, pack_sequences, special_ids
from wals_spark.mlm.loss import load_masked_lm
from wals_spark.mlm.pretrain import Schedule, pretrain
from wals_spark.mlm.statistics import Clusters
from wals_spark.stage import Context
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

LENGTH = 128
BASE = "base"
AT_ONCE = 32
RESAMPLES = 2000


@dataclass(frozen=True)
class HiddenWords:
    """Windows of text in one segmentation.

    Attributes
    ----------
    inputs : int64 array of shape (n, L)
        Padded with `pad`.
    row, column, target, word : int64 arrays of shape (t,)
        Hidden pieces, and the number of the hidden word that each belongs to.
    pad : int
    """

    inputs: np.ndarray
    row: np.ndarray
    column: np.ndarray
    target: np.ndarray
    word: np.ndarray
    pad: int


@dataclass(frozen=True)
class Text:
    """The same hidden words in every segmentation.

    Attributes
    ----------
    words : dict of str to HiddenWords
        By segmentation.
    size : int64 array of shape (w,)
        Bytes of each hidden word.
    document : int64 array of shape (w,)
    whole : bool array of shape (w,)
        Words that are one token in the last segmentation and several in the first.
    """

    words: dict[str, HiddenWords]
    size: np.ndarray
    document: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class _Segmented:
    """A document: its ids in a segmentation, and where each word begins among them."""

    ids: np.ndarray
    starts: np.ndarray


def segmented(loaded: LoadedTokenizer, text: str) -> tuple[_Segmented, list[str]]:
    """A text's pieces by word, and its words; a word is what the pretokenizer leaves in one piece."""
    encoding = loaded.tokenizer.encode(text, add_special_tokens=False)
    owners = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
    starts = np.searchsorted(owners, np.arange(owners.max(initial=-1) + 2))
    offsets = encoding.offsets  # made anew at every access
    spans = [(offsets[a][0], offsets[b - 1][1]) for a, b in pairwise(starts)]
    return _Segmented(np.array(encoding.ids, np.int64), starts), [text[a:b].strip() for a, b in spans]


def windows_of(parts: Sequence[_Segmented]) -> list[tuple[int, int]]:
    """First and last word of the windows of a document that fit every segmentation."""
    found, begin, count = [], 0, len(parts[0].starts) - 1
    while begin < count:
        ends = [int(np.searchsorted(p.starts, p.starts[begin] + LENGTH - 2, side="right")) - 1 for p in parts]
        if min(ends) > begin:
            found.append((begin, min(ends)))
        begin = max(min(ends), begin + 1)
    return found


def padding_id(loaded: LoadedTokenizer) -> int:
    """The id of the padding token."""
    return next(index for index, token in enumerate(loaded.tokens) if token in ("<pad>", "[PAD]"))


def hide_words(texts: Sequence[str], tokenizers: dict[str, LoadedTokenizer], limit: int, seed: int) -> Text:
    """Hide 15 % of the words of windows, the first window of every document before the second of any."""
    generator = np.random.default_rng([seed, 24])
    names, special = list(tokenizers), {name: special_ids(each) for name, each in tokenizers.items()}
    pads = {name: padding_id(each) for name, each in tokenizers.items()}
    windows, parts, spelled = [], {}, {}
    for document, text in enumerate(texts):
        found = {name: segmented(each, text[:6_000]) for name, each in tokenizers.items()}
        parts[document] = {name: part for name, (part, _) in found.items()}
        spelled[document] = found[names[0]][1]
        cut = windows_of(list(parts[document].values()))
        windows += [(turn, document, *window) for turn, window in enumerate(cut)]
    rows: dict[str, list[list[int]]] = {name: [] for name in names}
    places: dict[str, list[tuple[int, int, int, int]]] = {name: [] for name in names}
    owner: list[tuple[int, int, bool]] = []
    for number, (_, document, begin, end) in enumerate(sorted(windows)[:limit]):
        able = [word for word in range(begin, end) if spelled[document][word]]
        hidden = set(generator.choice(able, max(1, round(0.15 * len(able))), replace=False).tolist()) if able else set()
        pieces = {
            name: [part.ids[part.starts[word] : part.starts[word + 1]] for word in range(begin, end)]
            for name, part in parts[document].items()
        }
        for name in names:
            row = [special[name].start]
            for offset, ids in enumerate(pieces[name]):
                if begin + offset in hidden:
                    which = len(owner) + sorted(hidden).index(begin + offset)
                    places[name] += [(number, len(row) + i, int(piece), which) for i, piece in enumerate(ids)]
                row += [special[name].mask] * len(ids) if begin + offset in hidden else ids.tolist()
            rows[name].append([*row, special[name].end] + [pads[name]] * (LENGTH - len(row) - 1))
        for word in sorted(hidden):
            counts = [len(pieces[name][word - begin]) for name in (names[0], names[-1])]
            owner.append((document, len(spelled[document][word].encode()), counts[0] > 1 and counts[1] == 1))
    words = {}
    for name in names:
        row, column, target, word = np.array(places[name], np.int64).T
        words[name] = HiddenWords(np.array(rows[name], np.int64), row, column, target, word, pads[name])
    facts = np.array(owner, np.int64)
    return Text(words, facts[:, 1], facts[:, 0], facts[:, 2] > 0)


def word_losses(model: Any, words: HiddenWords, count: int) -> np.ndarray:
    """Nats of each hidden word, the sum over its pieces, float64 (count,)."""
    import torch

    was_training = model.training
    model.eval()
    total = np.zeros(count)
    base, head = getattr(model, model.base_model_prefix), getattr(model, "lm_head", None) or model.cls
    with torch.inference_mode():
        for begin in range(0, len(words.inputs), AT_ONCE):
            part = slice(*np.searchsorted(words.row, [begin, begin + AT_ONCE]))
            inputs = torch.from_numpy(words.inputs[begin : begin + AT_ONCE])
            hidden = base(inputs, attention_mask=(inputs != words.pad).long()).last_hidden_state
            logits = head(hidden[words.row[part] - begin, words.column[part]]).float()
            nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(words.target[part]), reduction="none")
            np.add.at(total, words.word[part], nll.double().numpy())
    model.train(was_training)
    return total


def make_checkpoint(config: Config, context: Context, how: str, directory: Path) -> None:
    """The checkpoint that mode ``transfer`` writes with a method."""
    flags = {"mode": "transfer", "transfer_rows": how, "gate": False}
    made = config.model_copy(update={"inject": config.inject.model_copy(update=flags)})
    vectors = read_vectors(context.tables, config.run_id, "u")
    base, edit, factors = prepare_edit(made, vectors)
    described = {"mode": "transfer", "parameters": {"seed": 1, **made.inject.result_keys()}, "factors": None}
    with atomic_directory.staged_directory(str(directory), replace=True) as staging:
        artifact.write_artifact(staging, base, edit, factors, described)


def make_missing(config: Config, arms: Sequence[str], models: Path) -> None:
    """The checkpoints of the arms that have none yet."""
    missing = [how for how in arms if how != BASE and not (models / how).is_dir()]
    if missing:
        context = Context(config)
        for how in missing:
            make_checkpoint(config, context, how, models / how)
        context.stop()


def training_sequences(
    texts: Sequence[str], loaded: LoadedTokenizer, special: SpecialIds, count: int
) -> PackedSequences:
    """Sequences of a random order of the documents."""
    order = np.random.default_rng([1, 25]).permutation(len(texts))[: 2 * count]
    return pack_sequences(encode(loaded, [texts[i] for i in order]), special, LENGTH, limit=count, round_robin=True)


def run_arm(
    directory: Path,
    segmentation: str,
    texts: dict[str, Text],
    training: PackedSequences | None,
    steps: tuple[int, ...],
    schedule: Schedule,
) -> dict[str, np.ndarray]:
    """Nats of every hidden word at every step: ``TEXT:STEP`` -> float64 (w,)."""
    model, found = load_masked_lm(str(directory)), {}
    special = special_ids(load_tokenizer(str(directory)))

    def measure(step: int, _: float = 0.0) -> None:
        for name, text in texts.items():
            found[f"{name}:{step}"] = word_losses(model, text.words[segmentation], len(text.size))

    if training is None:
        measure(0)
        return found
    few = PackedSequences(training.ids[:4], training.document[:4], 1)
    unseen = mask_tokens(few, special, 0.15, 1)
    pretrain(
        model,
        training,
        special,
        schedule,
        1,
        unseen=unseen,
        eval_steps=steps,
        stop=max(steps),
        on_evaluation=measure,
        label=directory.name,
    )
    return found


def table(results: dict[str, dict[str, np.ndarray]], texts: dict[str, Text]) -> list[dict[str, Any]]:
    """Nats per byte with intervals by document, and the paired difference from the arm ``subtokens``."""
    lines = []
    for name, text in texts.items():
        clusters = Clusters(text.document, RESAMPLES, 1)
        mean = float(text.size.mean())
        for arm, found in results.items():
            for key, nats in found.items():
                if not key.startswith(f"{name}:"):
                    continue
                own = clusters.mean(nats / mean)
                line = {"arm": arm, "text": name, "step": int(key.split(":")[1]), "nats_per_byte": own.value}
                line |= {"low": own.low, "high": own.high, "words": own.n, "documents": own.clusters}
                rival = results.get("subtokens", {}).get(key)
                if rival is not None:
                    paired = clusters.difference(nats / mean, rival / mean)
                    line |= {"over_subtokens": [paired.value, paired.low, paired.high]}
                line["whole_words"] = float(nats[text.whole].sum() / max(text.size[text.whole].sum(), 1))
                lines.append(line)
    return lines


def main() -> None:
    """Make the arms, score them, train them, score them again."""
    methods = get_args(InjectConfig.model_fields["transfer_rows"].annotation)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", type=Path, help="default: mini-roberta of the data")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[0, 100, 400], help="when to score; 0 alone trains nothing"
    )
    parser.add_argument("--of", type=int, default=400, help="steps of the learning rate's schedule")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--rows", nargs="+", choices=[BASE, *methods], default=[BASE, *methods])
    parser.add_argument("--sequences", type=int, default=200, help="windows of held-out text of each kind")
    parser.add_argument("--results", type=Path, help="default: results.json in the work directory")
    options = parser.parse_args()
    model = options.model or options.data / "models" / "mini-roberta"
    config = configuration(options.data, options.work, model, DOMAIN)
    make_missing(config, options.rows, options.work / "models")
    loaded = {"old": load_tokenizer(str(model)), "new": load_tokenizer(str(options.work / "tokenizer"))}
    texts = {
        name: hide_words(documents(options.work, batch, held_out=True), loaded, options.sequences, 1)
        for name, batch in (("domain", DOMAIN), ("general", GENERAL))
    }
    steps, training = tuple(options.steps), dict[str, PackedSequences]()
    if max(steps) > 0:
        counted = documents(options.work, DOMAIN, held_out=False)
        count = options.of * options.batch
        training = {n: training_sequences(counted, each, special_ids(each), count) for n, each in loaded.items()}
    schedule = Schedule(options.of, options.batch, options.rate)
    results = {}
    for how in options.rows:
        segmentation = "old" if how == BASE else "new"
        directory = model if how == BASE else options.work / "models" / how
        results[how] = run_arm(directory, segmentation, texts, training.get(segmentation), steps, schedule)
        lines = table(results, texts)
        (options.results or options.work / "results.json").write_text(json.dumps(lines, indent=1))
        for line in lines:
            if line["arm"] == how:
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
