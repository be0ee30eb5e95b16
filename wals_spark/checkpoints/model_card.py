"""The model card of an injected checkpoint: what changed, and how well the alignment did on held-out tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from typing import Any

_VERBS = {
    "init": "starts from corpus co-occurrence factors",
    "replace": "was replaced by corpus co-occurrence factors",
    "blend": "was blended with corpus co-occurrence factors",
    "extend": "got rows for new tokens of a corpus",
    "apply": "was changed by domain packs",
    "fit": "was fitted to the encoder's hidden states on a corpus",
    "auto": "was fitted to a corpus",
    "transfer": "was carried over to the tokenizer of a corpus",
    "trim": "was cut down to the tokens of a corpus",
}
_GOALS = {"sum": "general text and the domain together", "domain": "the corpus"}


def render_template(package: str, **values: Any) -> str:
    """The template model_card.md of a package with the values filled in; a name that it lacks is an error."""
    import jinja2

    template = resources.files(package).joinpath("model_card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True)
    return environment.from_string(template).render(**values)


def change_sentence(manifest: Mapping[str, Any]) -> str:
    """How many rows of the embedding changed, and whether the head bias did, from injection.json."""
    embedding, moved = manifest["embedding"], manifest["head_bias"]["changed"]
    if embedding["rows_changed"] == 0:
        alone = "only the head bias moved" if moved else "the model computes what the base does"
        return f"no row of {embedding['shape'][0]:,} was worth changing, {alone}"
    return (
        f"{embedding['rows_changed']:,} of {embedding['shape'][0]:,} rows changed, head bias "
        f"{'moved' if moved else 'as it was'}"
    )


def render_model_card(manifest: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Markdown with the metadata header of the hub, from injection.json (without hashes) and config.json."""
    source = str(manifest["base"]["source"])
    mode = manifest["mode"]
    gate = manifest["gate"]
    architecture = config["architectures"][0]
    strengths = manifest["fit"].get("strengths", {})
    return render_template(
        "wals_spark.checkpoints",
        title=f"{os.path.basename(source.rstrip('/')) or source} ({mode})",
        base_model=source.partition("@")[0] if manifest["base"]["hub"] else None,
        architecture=architecture,
        auto_class="AutoModelForMaskedLM" if architecture.endswith("MaskedLM") else "AutoModel",
        verb=_VERBS[mode],
        unchanged=manifest["embedding"]["rows_changed"] == 0,
        mode=mode,
        seed=manifest["parameters"].get("seed"),
        strength=strengths.get("head_bias"),
        goal=_GOALS.get(strengths.get("head_bias_target"), "the corpus"),
        embedding=manifest["embedding"],
        head_bias=manifest["head_bias"],
        factors=manifest["factors"],
        packs=manifest.get("packs", []),
        gate=gate,
        fit=manifest["fit"].get("fit"),
        encoder=manifest["fit"].get("through_the_encoder"),
        auto=manifest["fit"].get("auto"),
        forced=gate is not None and not gate["passed"],
    )
