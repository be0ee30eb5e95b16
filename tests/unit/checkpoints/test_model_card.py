from __future__ import annotations

import json

import pytest

from wals_spark.checkpoints.model_card import change_sentence, render_model_card


def test_a_blend_says_what_it_changed(make_checkpoint, inject):
    directory, manifest = inject(make_checkpoint())
    assert "token embedding was blended with corpus co-occurrence factors by `wals_spark` (mode `blend`).\n" in (
        directory / "README.md"
    ).read_text(encoding="utf-8")
    assert change_sentence(manifest).endswith("rows changed, head bias as it was")


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_a_blend_of_nothing_is_called_so(make_checkpoint, inject, strength):
    directory, manifest = inject(
        make_checkpoint(), inject__b_max=0.0, inject__head_bias=strength, inject__exposure="rank"
    )
    assert manifest["embedding"]["rows_changed"] == 0
    text = " ".join((directory / "README.md").read_text(encoding="utf-8").split())
    assert "is that of the base, bit by bit: `wals_spark` (mode `blend`) found that no row was worth changing" in text
    assert "was blended" not in text
    assert ("moved the head bias alone" in text) == (strength > 0)
    assert ("computes what the base does" in text) == (strength == 0)
    assert change_sentence(manifest).startswith("no row of ")
    assert ("only the head bias moved" in change_sentence(manifest)) == (strength > 0)


def test_the_card_comes_from_the_manifest_alone(make_checkpoint, inject):
    directory, manifest = inject(make_checkpoint())
    config = json.loads((directory / "config.json").read_text())
    assert render_model_card(manifest, config) == (directory / "README.md").read_text(encoding="utf-8")
