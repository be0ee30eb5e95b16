"""An encoder whose token embedding, input and output, is held as coordinates, a basis and a mean.

Written by wals_spark beside a checkpoint that loads with ``trust_remote_code=True``. It needs torch and transformers
only. ``Factorised*`` are the classes of `FAMILY` with two modules exchanged::

    input:   e_i   = a_i B + mu
    logits:  h E^T = (h B^T) A^T + h.mu

A, B and mu of the output are those of the input, the same parameters.
"""

# mypy: ignore-errors

import torch
import transformers
from torch import nn
from transformers import initialization as init

FAMILY = "Roberta"
MODEL_TYPE = "factorised-roberta"
PARTS = ("coordinates", "basis", "mean")


class FactorisedEmbedding(nn.Module):
    """Looks up mu + a_i B.

    Parameters
    ----------
    rows, rank, width : V, r, d
    padding_idx : the row that no gradient reaches, or None
    """

    def __init__(self, rows, rank, width, padding_idx=None):
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, width, padding_idx
        self.coordinates = nn.Parameter(torch.empty(rows, rank))
        self.basis = nn.Parameter(torch.empty(rank, width))
        self.mean = nn.Parameter(torch.empty(width))

    def forward(self, ids):
        """Rows of the embedding, (..., d) for ids (...)."""
        return nn.functional.embedding(ids, self.coordinates, self.padding_idx) @ self.basis + self.mean


class FactorisedDecoder(nn.Module):
    """Multiplies with the transposed embedding: two narrow products."""

    def __init__(self, rows, rank, width, bias):
        super().__init__()
        self.in_features, self.out_features = width, rows
        self.coordinates = nn.Parameter(torch.empty(rows, rank))
        self.basis = nn.Parameter(torch.empty(rank, width))
        self.mean = nn.Parameter(torch.empty(width))
        self.bias = bias

    def forward(self, hidden):
        """Logits, (..., V) for hidden (..., d)."""
        shift = (hidden @ self.mean)[..., None]
        return (hidden @ self.basis.T) @ self.coordinates.T + shift + self.bias


class FactorisedConfig(getattr(transformers, FAMILY + "Config")):
    """The family's configuration with the rank of the embedding, ``factor_rank``."""

    model_type = MODEL_TYPE


class _Factorised:
    """What all heads share: the exchange happens before ties and initialisation are looked at."""

    config_class = FactorisedConfig

    def post_init(self):
        """Exchange the modules, then go on as every model of transformers."""
        config = self.config
        inputs = self.get_input_embeddings()
        rows, width = inputs.num_embeddings, inputs.embedding_dim
        self.set_input_embeddings(FactorisedEmbedding(rows, config.factor_rank, width, inputs.padding_idx))
        outputs = self.get_output_embeddings()
        if outputs is not None:
            # set_output_embeddings of some families shares the bias as well, which then counts as loaded when it is not
            path = next(name for name, module in self.named_modules() if module is outputs)
            parent, _, name = path.rpartition(".")
            decoder = FactorisedDecoder(rows, config.factor_rank, width, outputs.bias)
            setattr(self.get_submodule(parent), name, decoder)
        super().post_init()

    def _init_weights(self, module):
        if isinstance(module, (FactorisedEmbedding, FactorisedDecoder)):
            # Products of r pairs have the variance that the family gives its embedding.
            init.normal_(module.coordinates, std=self.config.initializer_range)
            init.normal_(module.basis, std=self.config.factor_rank**-0.5)
            init.zeros_(module.mean)
            if isinstance(module, FactorisedDecoder):
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def resize_token_embeddings(self, *arguments, **options):
        """Refused: new rows would need coordinates of their own."""
        raise NotImplementedError(
            "a factorised embedding cannot be resized; resize the checkpoint it was made from and compress that"
        )

    def save_pretrained(self, *arguments, **options):
        """Save, with every head named in config.json, not only the class that is saved."""
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(*arguments, **options)


def _tied(keys):
    """The ties of the stock class with the matrix replaced by its three parts."""
    tied = {}
    for target, source in (keys or {}).items():
        if source.endswith("word_embeddings.weight"):
            for part in PARTS:
                tied[target.removesuffix("weight") + part] = source.removesuffix("weight") + part
        else:
            tied[target] = source
    return tied


class FactorisedModel(_Factorised, getattr(transformers, FAMILY + "Model")):
    """Without a head."""


class FactorisedForMaskedLM(_Factorised, getattr(transformers, FAMILY + "ForMaskedLM")):
    """With the tied masked-LM head."""

    _tied_weights_keys = _tied(getattr(transformers, FAMILY + "ForMaskedLM")._tied_weights_keys)


class FactorisedForSequenceClassification(_Factorised, getattr(transformers, FAMILY + "ForSequenceClassification")):
    """Classifies sequences."""


class FactorisedForTokenClassification(_Factorised, getattr(transformers, FAMILY + "ForTokenClassification")):
    """Classifies tokens."""


class FactorisedForQuestionAnswering(_Factorised, getattr(transformers, FAMILY + "ForQuestionAnswering")):
    """Finds answers in a text."""


_MODULE = "modeling_factorised"
AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.FactorisedConfig",
    "AutoModel": f"{_MODULE}.FactorisedModel",
    "AutoModelForMaskedLM": f"{_MODULE}.FactorisedForMaskedLM",
    "AutoModelForSequenceClassification": f"{_MODULE}.FactorisedForSequenceClassification",
    "AutoModelForTokenClassification": f"{_MODULE}.FactorisedForTokenClassification",
    "AutoModelForQuestionAnswering": f"{_MODULE}.FactorisedForQuestionAnswering",
}
