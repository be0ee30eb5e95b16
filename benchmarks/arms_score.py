"""What injection gains on a domain, step 2: masked-LM loss of every arm, zero-shot and along continued pretraining.

    python benchmarks/arms_score.py --directory DIR [--device cuda] [--steps 0,25,100,300] [--seeds 1,2,3] [--arms A,B]

DIR is a domain's directory from `benchmarks/arms_prepare.py`, with the base checkpoint's beside it. Needs torch,
transformers and numpy, no Spark. Every arm of a seed sees the same batches with the same masks (AdamW, 6 % warm-up,
linear decay to the last step; the earlier steps are points of that one run) and is scored on the same masks.

One JSON line per (text, arm, seed, steps) with the gain over the base at the same seed and steps and its paired 95 %
interval over documents; then one per arm and steps over all seeds, and one per pair of arms in `PAIRS` (two-level
bootstrap over seeds and documents). New tokens change the segmentation, so `extend` is scored on whole words: the same
words are hidden in both segmentations, all pieces of each, and a word's loss is the sum over its pieces.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.inject.blend import blend_rows
from wals_spark.mlm.data import NO_DOCUMENT, Masked, Packed, SpecialIds
from wals_spark.mlm.pretrain import Schedule, pretrain
from wals_spark.mlm.statistics import Clusters, Interval, two_level

BATCH, RATE = 32, 3e-4
RARE = (10, 30)
"""Occurrences in the general corpus of the tokens called rare: from, below."""
PAIRS = (
    ("blend + bias", "bias"),
    ("blend + bias", "permuted + bias"),
    ("blend + bias", "mean row + bias"),
    ("blend + shift + bias", "bias"),
    ("blend + shift + bias", "blend + bias"),
    ("blend", "permuted"),
    ("blend", "mean row"),
    ("extend", "extend, mean of subtokens"),
    ("extend", "extend, mean row"),
    ("extend", "extend, overlap"),
)
RESAMPLES = 2000
WORDS_AT_ONCE = 64


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Arrays as one compressed file."""
    np.savez_compressed(path, allow_pickle=False, **arrays)


def save_bf16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Tensors whose float32 values have bfloat16 precision, losslessly in a third of the bytes.

    Raises
    ------
    ValueError
        A value that bfloat16 does not hold.
    """
    packed = {}
    for name, values in tensors.items():
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        if (bits & 0xFFFF).any():
            raise ValueError(f"{name} is not of bfloat16 precision")
        high = (bits >> 16).astype(np.uint16)
        packed[f"{name}:high"], packed[f"{name}:low"] = (high >> 8).astype(np.uint8), (high & 0xFF).astype(np.uint8)
    save(path, packed)


def load_bf16(path: Path) -> dict[str, np.ndarray]:
    """What `save_bf16` wrote, float32."""
    stored = np.load(path)
    tensors = {}
    for name in sorted({key.rpartition(":")[0] for key in stored.files}):
        high, low = stored[f"{name}:high"].astype(np.uint32), stored[f"{name}:low"].astype(np.uint32)
        tensors[name] = ((high << 24) | (low << 16)).view(np.float32)
    return tensors


@dataclass(frozen=True)
class Words:
    """Windows of text whose hidden words are the same in every segmentation.

    Attributes
    ----------
    inputs : uint16 (n, L), padded with `pad`
    row, column, target, word : int arrays (t,)
        Hidden pieces, and which hidden word each belongs to.
    document : int32 (words,)
    new : bool (words,)
        Words that are a token of their own in the extended tokenizer only.
    pad : int
    """

    inputs: np.ndarray
    row: np.ndarray
    column: np.ndarray
    target: np.ndarray
    word: np.ndarray
    document: np.ndarray
    new: np.ndarray
    pad: int


@dataclass(frozen=True)
class Case:
    """A domain's directory, read.

    Attributes
    ----------
    facts : dict
        Of facts.json: arms, special ids, strengths.
    arrays : dict of str -> array
    base : dict of str -> float32 array
        State dict of the base.
    config : Path
        The directory of its config.json.
    """

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray]
    base: dict[str, np.ndarray]
    config: Path

    def special(self, *, extended: bool = False) -> SpecialIds:
        """The special ids, and how many tokens there are."""
        ids = self.facts["special"]
        size = self.facts["extended_size" if extended else "size"]
        return SpecialIds(ids["start"], ids["end"], ids["mask"], frozenset(ids["all"]), size)

    def masked(self, name: str) -> Masked:
        """Fixed masks."""
        inputs, row, column, target, document = (
            self.arrays[f"{name}_{part}"] for part in ("inputs", "row", "column", "target", "document")
        )
        wide = [values.astype(np.int32) for values in (inputs, row, column, target, document)]
        return Masked(*wide)

    def words(self, text: str, segmentation: str) -> Words:
        """Hidden words of a text in a segmentation, ``old`` or ``extended``."""

        def array(part: str) -> np.ndarray:
            return self.arrays[f"words_{text}_{part}"]

        inputs, row, column, target, word = (
            array(f"{segmentation}_{part}").astype(np.int64) for part in ("inputs", "row", "column", "target", "word")
        )
        return Words(inputs, row, column, target, word, array("document"), array("new"), self.facts["special"]["pad"])

    def training(self, segmentation: str) -> Packed:
        """Sequences to continue pretraining on."""
        ids = self.arrays[f"training_{segmentation}"].astype(np.int32)
        special = self.facts["special"]
        document = np.where(np.isin(ids, [special["start"], special["end"]]), NO_DOCUMENT, 0).astype(np.int32)
        return Packed(ids, document, 1)


def read_case(directory: Path) -> Case:
    """Read a domain's directory and the base beside it."""
    arrays: dict[str, np.ndarray] = {}
    for path in sorted(directory.glob("*.npz")):
        with np.load(path) as stored:
            arrays.update({name: stored[name] for name in stored.files})
    base = directory.parent / "base"
    facts = json.loads((directory / "facts.json").read_text())
    return Case(facts, arrays, load_bf16(base / "weights.npz"), base)


def aligned_rows(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Rows that the factors propose, P = mu_e + stretch (u - mu_u) W, float32 (V, d)."""
    U, stretch = arrays["U"].astype(np.float32), arrays["stretch"]
    return arrays["mu_e"] + stretch[:, None] * ((U - arrays["mu_u"]) @ arrays["W"])


def shift_rows(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What the shift adds at strength 1, float32 (V, d)."""
    shift = np.zeros((len(arrays["U"]), arrays["W"].shape[1]), np.float32)
    moved = arrays["delta"].astype(np.float32) @ arrays["W"]
    shift[arrays["delta_ids"]] = arrays["delta_trust"][:, None] * moved
    return shift


def rows_of(arm: dict[str, Any], E: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The embedding of an arm, float32 (V, d)."""
    kind = arm["rows"]
    if kind == "base":
        return E
    if kind == "mean row":
        P = np.broadcast_to(arrays["mu_e"], E.shape)
    elif kind == "permuted":
        P = aligned_rows(arrays)[arrays["permutation"]]
    else:
        P = aligned_rows(arrays)
    rows = blend_rows(E, P, arrays["everything" if kind == "replace" else "share"])
    if arm["shift"]:
        rows = rows + np.float32(arm["shift"]) * shift_rows(arrays)
    return rows


def model_of(case: Case, arm: dict[str, Any], device: str) -> Any:
    """The masked-LM model of an arm."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    E = case.base["roberta.embeddings.word_embeddings.weight"]
    state = dict(case.base)
    config = RobertaConfig.from_pretrained(case.config)
    if "extended" in arm:
        config.vocab_size = case.facts["extended_size"]
        state["roberta.embeddings.word_embeddings.weight"] = np.concatenate([E, case.arrays[arm["extended"]]])
        state["lm_head.bias"] = np.concatenate([state["lm_head.bias"], case.arrays["extended_bias"]])
    else:
        state["roberta.embeddings.word_embeddings.weight"] = rows_of(arm, E, case.arrays)
        if arm["bias"] != "base":
            state["lm_head.bias"] = case.arrays[f"bias_{arm['bias']}"]
    model = RobertaForMaskedLM(config)
    tensors = {name: torch.from_numpy(np.array(values, np.float32)) for name, values in state.items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    left = [name for name in missing if not name.startswith("lm_head.decoder.")]
    if left or unexpected:
        raise ValueError(f"missing {left}, unexpected {unexpected}: the base is not a masked-LM RoBERTa")
    return model.to(device).eval()


def word_losses(model: Any, words: Words) -> np.ndarray:
    """Nats per hidden word: the sum over its pieces, float64 (words,)."""
    import torch

    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total = np.zeros(len(words.document))
    with torch.inference_mode():
        for begin in range(0, len(words.inputs), WORDS_AT_ONCE):
            part = slice(*np.searchsorted(words.row, [begin, begin + WORDS_AT_ONCE]))
            inputs = torch.from_numpy(words.inputs[begin : begin + WORDS_AT_ONCE]).to(device)
            hidden = model.roberta(inputs, attention_mask=(inputs != words.pad).long()).last_hidden_state
            logits = model.lm_head(hidden[words.row[part] - begin, words.column[part]]).float()
            target = torch.from_numpy(words.target[part]).to(device)
            nll = torch.nn.functional.cross_entropy(logits, target, reduction="none")
            np.add.at(total, words.word[part], nll.double().cpu().numpy())
    model.train(was_training)
    return total


@dataclass(frozen=True)
class Measured:
    """What is measured of an arm, a seed and a number of steps on one text.

    Attributes
    ----------
    nll : float64 (n,)
        Per target, or per hidden word.
    top1 : float64 (n,) or None
    """

    nll: np.ndarray
    top1: np.ndarray | None = None


Found = dict[tuple[str, str, int, int], Measured]
"""(text, arm, seed, steps) -> figures."""


def trained_arms(case: Case, names: list[str], seeds: list[int], steps: tuple[int, ...], device: str) -> Found:
    """Arms of the old segmentation on masked tokens."""
    texts = {text: case.masked(f"test_{text}") for text in ("domain", "general")}
    both = joined(*texts.values())
    split = len(texts["domain"])
    found: Found = {}
    for name in names:
        for seed in seeds:
            started = time.monotonic()
            model = model_of(case, case.facts["arms"][name], device)
            schedule = Schedule(max(steps), BATCH, RATE)
            curve = pretrain(
                model, case.training("old"), case.special(), schedule, seed, unseen=both, at=steps, label=name
            )
            for step, nll, rank in zip(curve.steps, curve.nll, curve.rank, strict=True):
                top1 = (rank == 0).astype(np.float64)
                found["domain", name, seed, step] = Measured(nll[:split], top1[:split])
                found["general", name, seed, step] = Measured(nll[split:], top1[split:])
            say(note="trained", arm=name, seed=seed, seconds=round(time.monotonic() - started, 1))
    return found


def extended_arms(case: Case, names: list[str], seeds: list[int], steps: tuple[int, ...], device: str) -> Found:
    """`extend`, its baselines and the base, on hidden words."""
    found: Found = {}
    for name in names:
        arm = case.facts["extended_arms"][name]
        segmentation = "extended" if "extended" in arm else "old"
        tests = {text: case.words(text, segmentation) for text in ("domain", "general")}
        special = case.special(extended=segmentation == "extended")
        some = case.masked("test_domain") if segmentation == "old" else case.masked("test_extended")
        for seed in seeds:
            model = model_of(case, arm, device)
            schedule = Schedule(max(steps), BATCH, RATE)
            measure = on_words(found, tests, name, seed, model)
            pretrain(
                model, case.training(segmentation), special, schedule, seed, unseen=some, at=steps, on_point=measure
            )
    return found


def on_words(found: Found, tests: dict[str, Words], name: str, seed: int, model: Any) -> Callable[[int, float], None]:
    """What `pretrain` calls at a point: measure the hidden words of both texts."""

    def measure(step: int, _: float) -> None:
        for text, words in tests.items():
            found[text, name, seed, step] = Measured(word_losses(model, words))

    return measure


def joined(first: Masked, second: Masked) -> Masked:
    """Two sets of sequences behind one another."""
    return Masked(
        np.concatenate([first.inputs, second.inputs]),
        np.concatenate([first.row, second.row + len(first.inputs)]),
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("column", "target", "document")),
    )


def report(domain: str, kind: str, found: Found, document: dict[str, np.ndarray], parts: dict[str, Any]) -> None:
    """Print a line per measurement, per arm over all seeds, and per pair of arms.

    Parameters
    ----------
    kind : what a loss is of, ``token`` or ``word``
    document : cluster of every target by text
    parts : by text, name -> bool (n,) of the targets that are also reported apart
    """
    base, first = next(iter(found))[1], next(iter(found))[2]
    facts = {"benchmark": "arms", "domain": domain, "loss_per": kind}
    clusters = {text: Clusters(labels, RESAMPLES, 1) for text, labels in document.items()}
    for (text, arm, seed, step), measured in found.items():
        if step == 0 and seed != first:  # nothing was trained: all seeds are one
            continue
        gain = clusters[text].difference(found[text, base, seed, step].nll, measured.nll)
        figures: dict[str, Any] = {"nats": _short(measured.nll.mean()), **_interval("gain", gain), "targets": gain.n}
        if measured.top1 is not None:
            figures["top1"] = _short(measured.top1.mean())
        for name, chosen in parts[text].items():
            figures[f"{name}_nats"] = _short(measured.nll[chosen].mean()) if chosen.any() else None
            figures[f"{name}_targets"] = int(chosen.sum())
            if measured.top1 is not None and chosen.any():
                figures[f"{name}_top1"] = _short(measured.top1[chosen].mean())
        say(**facts, case="arm", text=text, arm=arm, seed=seed, steps=step, **figures)
    seeds = sorted({key[2] for key in found})
    for text, arm, step in sorted({(key[0], key[1], key[3]) for key in found}, key=str):
        pairs = [(base, f"{base} - {arm}")] if arm != base else []
        pairs += [(other, f"{other} - {arm}") for mine, other in PAIRS if mine == arm and other != base]
        for other, name in pairs:
            if (text, other, seeds[0], step) not in found:
                continue
            before, after = (np.stack([found[text, which, seed, step].nll for seed in seeds]) for which in (other, arm))
            difference = two_level(before, after, document[text], RESAMPLES, 1)
            line: dict[str, Any] = {
                "text": text,
                "steps": step,
                "gain_of": name,
                "seeds": len(seeds),
                **_interval("nats", difference),
            }
            for part, chosen in parts[text].items():
                if chosen.any():
                    of_part = two_level(before[:, chosen], after[:, chosen], document[text][chosen], RESAMPLES, 1)
                    line.update(_interval(part, of_part))
            say(**facts, case="difference", **line)


def _interval(name: str, interval: Interval) -> dict[str, float]:
    return {name: _short(interval.value), f"{name}_low": _short(interval.low), f"{name}_high": _short(interval.high)}


def _short(value: float) -> float:
    return round(float(value), 4)


def say(**facts: Any) -> None:
    """Print a JSON line."""
    print(json.dumps(facts), flush=True)


def main() -> int:
    """Run the benchmark's second step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="a domain's, with base/ beside it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", default="0,25,100,300", help="the run ends at the largest; 0 = zero-shot only")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arms", help="some of facts.json's arms, by comma; the base comes first anyway")
    parser.add_argument("--only", choices=("tokens", "words"), help="one of the two comparisons")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    case = read_case(options.directory)
    steps = tuple(sorted({int(step) for step in options.steps.split(",")}))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    chosen = set(options.arms.split(",")) if options.arms else None
    say(benchmark="arms", case="facts", **case.facts["told"])
    if options.only != "words":
        names = [name for name in case.facts["arms"] if chosen is None or name in chosen or name == "base"]
        found = trained_arms(case, names, seeds, steps, options.device)
        tests = {text: case.masked(f"test_{text}") for text in ("domain", "general")}
        seen = {text: case.arrays["general_counts"][masked.target] for text, masked in tests.items()}
        rare = {text: {"rare": (counts >= RARE[0]) & (counts < RARE[1])} for text, counts in seen.items()}
        documents = {text: masked.document for text, masked in tests.items()}
        report(case.facts["domain"], "token", found, documents, rare)
    if options.only != "tokens":
        names = [name for name in case.facts["extended_arms"] if chosen is None or name in chosen or name == "base"]
        found = extended_arms(case, names, seeds, steps, options.device)
        hidden = {text: case.words(text, "old") for text in ("domain", "general")}
        new = {text: {"new_words": words.new} for text, words in hidden.items()}
        report(case.facts["domain"], "word", found, {text: words.document for text, words in hidden.items()}, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
