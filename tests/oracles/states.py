"""Reference implementations of sequences, masks and states: plain Python integers, one document at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

WORD = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15


def hash_reference(*words: int) -> int:
    """`splitmix64.hash_words` of numbers."""
    x = 0
    for place, word in enumerate(words, 1):
        x = ((x ^ word) + place * GAMMA) & WORD
        x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ x >> 27) * 0x94D049BB133111EB) & WORD
        x ^= x >> 31
    return x


def cut_reference(documents: dict[int, list[int]], length: int) -> dict[tuple[int, int], list[int]]:
    """(document, start) -> tokens of every sequence of documents without negative ids."""
    found = {}
    for key, tokens in documents.items():
        for start in range(0, len(tokens), length - 2):
            piece = tokens[start : start + length - 2]
            whole = len(piece) == len(tokens)
            if len(piece) >= (2 if whole else min(16, length - 2)):
                found[key, start] = piece
    return found


def sample_reference(
    found: dict[tuple[int, int], list[int]], count: int, seed: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """The first `count` different ones by the hash of (seed, document, start)."""
    order = sorted(found, key=lambda name: (hash_reference(0x73616D706C65, seed, *name), name))
    kept: list[tuple[tuple[int, int], list[int]]] = []
    for name in order:
        if len(kept) < count and found[name] not in [tokens for _, tokens in kept]:
            kept.append((name, found[name]))
    return kept


def masks_reference(
    tokens: list[int], special: set[int], name: tuple[int, int], count: int, fraction: float, seed: int
) -> list[list[int]]:
    """The positions that each of `count` maskings of a sequence hides."""
    ordinary = [place for place, token in enumerate(tokens) if token not in special]
    k = max(1, round(fraction * len(ordinary))) if ordinary else 0
    if k == 0:
        return [[] for _ in range(count)]
    found: list[list[int]] = []
    cycle = 0
    while len(found) < count:
        own = hash_reference(0x6D61736B, seed, *name)
        shuffled = sorted(ordinary, key=lambda place: (hash_reference(own, cycle, place), place))
        found += [sorted(shuffled[low : low + k]) for low in range(0, len(shuffled) - k + 1, k)]
        cycle += 1
    return found[:count]


def states_reference(
    model: Any, special: Any, sequences: list[tuple[int, list[int]]], masks: list[list[list[int]]], candidates: int
) -> dict[str, np.ndarray]:
    """States of one sequence and masking at a time, without padding, the head's layers called by their names."""
    import torch

    rows: list[tuple[Any, ...]] = []
    decoder = model.get_output_embeddings()
    for (document, tokens), maskings in zip(sequences, masks, strict=True):
        for positions in maskings:
            ids = [special.start, *tokens, special.end]
            for place in positions:
                ids[place + 1] = special.mask
            with torch.no_grad():
                hidden = model.base_model(torch.tensor([ids])).last_hidden_state[0]
                hidden = _transform(model, hidden)
            for place in positions:
                h = hidden[place + 1].half()
                z = (h.double() @ decoder.weight.double().T + decoder.bias.double()).detach()
                best = torch.argsort(z, descending=True)[:candidates]
                rows.append(
                    (h.numpy(), tokens[place], document, best.numpy(), float(z.logsumexp(0)), float(z[tokens[place]]))
                )
    names = ("hidden", "target", "document", "candidates", "log_partition", "target_logit")
    return dict(zip(names, (np.array(column) for column in zip(*rows, strict=True)), strict=True))


def _transform(model: Any, hidden: Any) -> Any:
    import torch

    if hasattr(model, "lm_head"):
        head = model.lm_head
        return head.layer_norm(torch.nn.functional.gelu(head.dense(hidden)))
    if hasattr(model, "cls"):
        return model.cls.predictions.transform(hidden)
    return model.vocab_layer_norm(model.activation(model.vocab_transform(hidden)))
