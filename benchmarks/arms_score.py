"""The gain of injection on a domain, step 2: masked-LM loss of every arm, zero-shot and along continued pretraining.

    python benchmarks/arms_score.py --directory DIR --results DIR                                   zero-shot
    python benchmarks/arms_score.py --directory DIR --results DIR --steps 25,100 --seeds 1,2,3      after training
    python benchmarks/arms_score.py --directory DIR --results DIR --steps 25,100 --of 300 ...    its first third only
    python benchmarks/arms_score.py --directory DIR --results DIR --report

`--directory` is a domain's from `benchmarks/arms_prepare.py`, with the base checkpoint's beside it. Needs torch,
transformers and numpy, no Spark. Every arm of a seed sees the same batches with the same masks (AdamW, 6 % warm-up,
linear decay to `--of`, by default the largest of the steps; the others are points of that one run) and is scored on the
same masks. An arm that lies in `--results` with all of the steps is not run again. `--report` prints a JSON line per
(text, arm, seed, steps) with the gain over the base at the same seed and steps and its paired 95 % interval over
documents, then the same over all seeds and for the pairs of arms in `PAIRS` (two-level bootstrap over seeds and
documents).

New tokens change the segmentation, so `extend` is scored on whole words: the same words are hidden in both
segmentations, all pieces of each, and a word's loss is the sum over its pieces.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wals_spark.inject.blend import blend_rows
from wals_spark.mlm.data import NO_DOCUMENT, MaskedSequences, PackedSequences, SpecialIds
from wals_spark.mlm.pretrain import Schedule, pretrain
from wals_spark.mlm.statistics import Clusters, Interval, two_level_bootstrap

BATCH, RATE = 32, 3e-4
TEXTS = ("domain", "general")
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

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """Every arm by name, of both segmentations."""
        return {**self.facts["arms"], **self.facts["extended_arms"]}

    def targets(self, kind: str, text: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The document of every target of a kind, ``token`` or ``word``, and targets that are also reported apart."""
        if kind == "word":
            words = self.words(text, "old")
            return words.document, {"new_words": words.new}
        masked = self.masked(f"test_{text}")
        seen = self.arrays["general_counts"][masked.target]
        return masked.document, {"rare": (seen >= RARE[0]) & (seen < RARE[1])}

    def special(self, *, extended: bool = False) -> SpecialIds:
        """The special ids, and how many tokens there are."""
        ids = self.facts["special"]
        size = self.facts["extended_size" if extended else "size"]
        return SpecialIds(ids["start"], ids["end"], ids["mask"], frozenset(ids["all"]), size)

    def masked(self, name: str) -> MaskedSequences:
        """Fixed masks."""
        inputs, row, column, target, document = (
            self.arrays[f"{name}_{part}"] for part in ("inputs", "row", "column", "target", "document")
        )
        wide = [values.astype(np.int32) for values in (inputs, row, column, target, document)]
        return MaskedSequences(*wide)

    def words(self, text: str, segmentation: str) -> Words:
        """Hidden words of a text in a segmentation, ``old`` or ``extended``."""

        def array(part: str) -> np.ndarray:
            return self.arrays[f"words_{text}_{part}"]

        inputs, row, column, target, word = (
            array(f"{segmentation}_{part}").astype(np.int64) for part in ("inputs", "row", "column", "target", "word")
        )
        return Words(inputs, row, column, target, word, array("document"), array("new"), self.facts["special"]["pad"])

    def training(self, segmentation: str) -> PackedSequences:
        """Sequences to continue pretraining on."""
        ids = self.arrays[f"training_{segmentation}"].astype(np.int32)
        special = self.facts["special"]
        document = np.where(np.isin(ids, [special["start"], special["end"]]), NO_DOCUMENT, 0).astype(np.int32)
        return PackedSequences(ids, document, 1)


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


Results = dict[str, np.ndarray]
"""``token:TEXT:STEP:nll``, ``token:TEXT:STEP:top1``, ``word:TEXT:STEP:nll`` of an arm and a seed."""


def run_arm(case: Case, name: str, seed: int, steps: tuple[int, ...], of: int, device: str) -> Results:
    """Measure an arm after every one of the steps of a schedule of `of` steps.

    On masked tokens where it has the old segmentation, on hidden words where `extend` is compared with it.
    """
    arm = case.arms[name]
    segmentation = "extended" if "extended" in arm else "old"
    texts = {text: case.masked(f"test_{text}") for text in TEXTS}
    unseen = joined(*texts.values()) if segmentation == "old" else case.masked("test_extended")
    words = {text: case.words(text, segmentation) for text in TEXTS if name in case.facts["extended_arms"]}
    found: Results = {}
    model = model_of(case, arm, device)

    def on_words(step: int, _: float) -> None:
        for text, hidden in words.items():
            found[f"word:{text}:{step}:nll"] = word_losses(model, hidden)

    curve = pretrain(
        model,
        case.training(segmentation),
        case.special(extended=segmentation == "extended"),
        Schedule(of, BATCH, RATE),
        seed,
        unseen=unseen,
        eval_steps=steps,
        stop=max(steps),
        on_evaluation=on_words,
        label=f"{name}, seed {seed}",
    )
    if segmentation == "old":
        split = len(texts["domain"])
        for step, nll, rank in zip(curve.steps, curve.nll, curve.rank, strict=True):
            for text, part in (("domain", slice(split)), ("general", slice(split, None))):
                found[f"token:{text}:{step}:nll"] = nll[part]
                found[f"token:{text}:{step}:top1"] = (rank[part] == 0).astype(np.float64)
    return found


def run_all(
    case: Case, results: Path, names: list[str], seeds: list[int], steps: tuple[int, ...], of: int, device: str
) -> None:
    """Every arm and seed that is not there yet with all of the steps, a seed at a time."""
    results.mkdir(parents=True, exist_ok=True)
    for seed in seeds if of else seeds[:1]:  # without training all seeds are one
        for name in names:
            path = results / f"{name.replace(' ', '_')}.seed{seed}.of{of}.npz"
            if path.is_file() and set(steps) <= measured_steps(path):
                continue
            started = time.monotonic()
            found = run_arm(case, name, seed, steps, of, device)
            partial = path.with_suffix(".part.npz")
            save(partial, found)
            partial.rename(path)
            print(f"{path.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def measured_steps(path: Path) -> set[int]:
    """The steps after which the losses of a results file were measured."""
    with np.load(path) as stored:
        return {int(name.split(":")[2]) for name in stored.files}


def joined(first: MaskedSequences, second: MaskedSequences) -> MaskedSequences:
    """Two sets of sequences behind one another."""
    return MaskedSequences(
        np.concatenate([first.inputs, second.inputs]),
        np.concatenate([first.row, second.row + len(first.inputs)]),
        *(np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("column", "target", "document")),
    )


Found = dict[tuple[str, int, int], Results]
"""(arm, seed, steps of the whole run) -> results."""


def read_results(case: Case, results: Path) -> Found:
    """Everything that was measured so far."""
    spelled = {name.replace(" ", "_"): name for name in case.arms}
    found: Found = {}
    for path in sorted(results.glob("*.seed*.of*.npz")):
        arm, seed, run = path.name.removesuffix(".npz").rsplit(".", 2)
        if path.name.endswith(".part.npz"):
            continue
        with np.load(path) as stored:
            key = (spelled[arm], int(seed.removeprefix("seed")), int(run.removeprefix("of")))
            found[key] = {name: stored[name] for name in stored.files}
    return found


def report(case: Case, found: Found) -> None:
    """Print a line per measurement, and one per pair of arms over all seeds that both have."""
    say(benchmark="arms", case="facts", **case.facts["told"])
    for kind in ("token", "word"):
        for text in TEXTS:
            document, parts = case.targets(kind, text)
            clusters = Clusters(document, RESAMPLES, 1)
            places = {
                (run, int(key.split(":")[2]))
                for (_, _, run), results in found.items()
                for key in results
                if key.startswith(f"{kind}:{text}:")
            }
            for run, step in sorted(places):
                key = f"{kind}:{text}:{step}"
                measured = {
                    (arm, seed): results
                    for (arm, seed, of), results in found.items()
                    if of == run and f"{key}:nll" in results
                }
                facts = {"domain": case.facts["domain"], "loss_per": kind, "text": text, "steps": step, "of": run}
                _report_arms(facts, key, measured, clusters, parts)
                _report_pairs(facts, f"{key}:nll", measured, document, parts)


Parts = dict[str, np.ndarray]
"""Name -> bool (n,): targets that are also reported apart."""


def _report_arms(
    facts: dict[str, Any], key: str, measured: dict[tuple[str, int], Results], clusters: Clusters, parts: Parts
) -> None:
    for (arm, seed), results in measured.items():
        nll, top1 = results[f"{key}:nll"], results.get(f"{key}:top1")
        figures: dict[str, Any] = {"nats": _short(nll.mean()), "targets": len(nll)}
        if ("base", seed) in measured:
            gain = clusters.difference(measured["base", seed][f"{key}:nll"], nll)
            figures.update(_interval("gain", gain))
        for name, chosen in ({"": np.ones(len(nll), bool)} | parts).items():
            prefix = f"{name}_" if name else ""
            if name and chosen.any():
                figures[f"{prefix}nats"], figures[f"{prefix}targets"] = _short(nll[chosen].mean()), int(chosen.sum())
            if top1 is not None and chosen.any():
                figures[f"{prefix}top1"] = _short(top1[chosen].mean())
        say(benchmark="arms", case="arm", **facts, arm=arm, seed=seed, **figures)


def _report_pairs(
    facts: dict[str, Any],
    key: str,
    measured: dict[tuple[str, int], Results],
    document: np.ndarray,
    parts: Parts,
) -> None:
    arms = sorted({arm for arm, _ in measured})
    pairs = [("base", arm) for arm in arms if arm != "base"] + [(other, arm) for arm, other in PAIRS if other != "base"]
    for other, arm in pairs:
        seeds = [seed for name, seed in measured if name == arm and (other, seed) in measured]
        if not seeds:
            continue
        before, after = (np.stack([measured[name, seed][key] for seed in seeds]) for name in (other, arm))
        line: dict[str, Any] = {}
        for name, chosen in ({"gain": np.ones(len(document), bool)} | parts).items():
            if chosen.any():
                gain = two_level_bootstrap(before[:, chosen], after[:, chosen], document[chosen], RESAMPLES, 1)
                line.update(_interval(name, gain))
        say(benchmark="arms", case="gain", **facts, arm=arm, over=other, seeds=len(seeds), **line)


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
    parser.add_argument("--results", type=Path, required=True, help="where losses per target are kept")
    parser.add_argument("--report", action="store_true", help="print what is there, run nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", default="0", help="by comma; the run ends at the largest; 0 = zero-shot")
    parser.add_argument("--of", type=int, help="steps of the whole schedule; default: the largest of --steps")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--arms", help="by semicolon; default: all")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    case = read_case(options.directory)
    results = options.results / case.facts["domain"]
    if not options.report:
        names = options.arms.split(";") if options.arms else list(case.arms)
        unknown = [name for name in names if name not in case.arms]
        if unknown:
            parser.error(f"--arms: {', '.join(unknown)} not among {'; '.join(case.arms)}")
        steps = tuple(sorted({int(step) for step in options.steps.split(",")}))
        of = max(steps) if options.of is None else options.of
        if of < max(steps):
            parser.error(f"--of {of} is less than the largest of --steps, {max(steps)}")
        seeds = [int(seed) for seed in options.seeds.split(",")]
        run_all(case, results, names, seeds, steps, of, options.device)
    report(case, read_results(case, results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
