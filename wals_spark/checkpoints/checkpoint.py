"""Checkpoints on disk: their class, their tensors, the tie of head and embedding, the protected rows.

No model is built here. A checkpoint is a directory with a config.json and weights as one safetensors file,
as sharded safetensors, or as a ``.bin`` file, which is read with ``weights_only`` and never written.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from wals_spark.checkpoints.json_file import read_json_object, refuse_lfs_pointer, require_texts, require_value
from wals_spark.checkpoints.raw_tensor import RawTensor, file_sha256, from_torch
from wals_spark.checkpoints.safetensors_file import read_raw_tensors
from wals_spark.checkpoints.special_tokens import named_special_tokens
from wals_spark.errors import InputError
from wals_spark.tokenizer import LoadedTokenizer, load_tokenizer

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "sentencepiece.bpe.model",
)
_LICENSES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
_NOT_MISSED = frozenset({"README.md", "injection.json", "factors.safetensors", ".gitattributes", ".git", ".cache"})
_CONFIG_FILES = ("config.json", "generation_config.json")
_UNUSED = re.compile(r"madeupword\d+|<\|endoftext\|>|\[unused\d+\]|<unused\d+>|<gap:\d+>")
"""Tokens that tokenizers reserve: no text produces them, so no corpus counts them."""


@dataclass(frozen=True)
class ModelFamily:
    """Names of the tensors and classes of a model family.

    Attributes
    ----------
    prefix : str
        Of the encoder's tensors in classes with a head.
    decoder : str
        The output embedding, tied to the input embedding.
    head_bias : str
        Its bias.
    decoder_bias : str
        The second name of that bias.
    classes : str
        Stem of the class names, as in ``RobertaForMaskedLM``.
    """

    prefix: str
    decoder: str
    head_bias: str
    decoder_bias: str
    classes: str


_LM_HEAD = ("lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias")
_CLS = ("cls.predictions.decoder.weight", "cls.predictions.bias", "cls.predictions.decoder.bias")
FAMILIES: dict[str, ModelFamily] = {
    "roberta": ModelFamily("roberta.", *_LM_HEAD, "Roberta"),
    "xlm-roberta": ModelFamily("roberta.", *_LM_HEAD, "XLMRoberta"),
    "camembert": ModelFamily("roberta.", *_LM_HEAD, "Camembert"),
    "bert": ModelFamily("bert.", *_CLS, "Bert"),
    "distilbert": ModelFamily(
        "distilbert.", "vocab_projector.weight", "vocab_projector.bias", "vocab_projector.bias", "DistilBert"
    ),
}
_CONFIG_TYPES: dict[str, type | tuple[type, ...]] = {
    "model_type": str,
    "architectures": list,
    "vocab_size": int,
    "hidden_size": int,
    "dim": int,
    "tie_word_embeddings": bool,
    "max_position_embeddings": int,
    "pad_token_id": int,
}
"""Of the keys of config.json that are read here, where they are set."""
EMBEDDING_SUFFIX = "embeddings.word_embeddings.weight"
_WRAPPERS = {
    "module.": "DataParallel and DistributedDataParallel",
    "_orig_mod.": "torch.compile",
    "base_model.model.": "PEFT (merge the adapter first: merge_and_unload)",
}
_NESTED = ("state_dict", "model_state_dict", "model", "module")
"""Under which training loops save a model beside its optimizer."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint of a known family.

    Attributes
    ----------
    source : str
        As the user named it.
    directory : Path
    config : dict of str to object
        The content of config.json.
    family : ModelFamily
    tensors : dict of str to RawTensor
        Without the second copies of tied tensors.
    dropped : tuple of str
        Names of those copies, bit-equal to the tensors they are tied to (see `_drop_tied_copies`).
    metadata : dict of str to str
        Of the safetensors file.
    embedding : str
        Name of the input embedding (V, d).
    head_bias : str or None
        Name of the masked-LM head's bias (V,), None for a class without that head.
    """

    source: str
    directory: Path
    config: Mapping[str, Any]
    family: ModelFamily
    tensors: Mapping[str, RawTensor]
    dropped: tuple[str, ...]
    metadata: Mapping[str, str]
    embedding: str
    head_bias: str | None

    @property
    def architecture(self) -> str:
        """The class that the checkpoint was saved from."""
        return str(self.config["architectures"][0])

    @property
    def vocab_size(self) -> int:
        """V: rows of the embedding."""
        return self.tensors[self.embedding].shape[0]

    @property
    def hidden_size(self) -> int:
        """d: columns of the embedding."""
        return self.tensors[self.embedding].shape[1]


def locate_checkpoint(source: str, key: str = "inject.checkpoint", *, weights: bool = True) -> Path:
    """The local directory of a checkpoint: a path, or a hub name that is downloaded to the hub's cache.

    A hub name may have a revision (branch, tag or commit) behind an @, as in ``org/name@main``.

    Raises
    ------
    InputError
        Neither a directory nor to be had from the hub.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{key}: {source} is a file, expected the directory that holds config.json")
    name, _, revision = source.partition("@")
    if source.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"{key}: there is nothing at {source}; give a checkpoint's directory or a hub name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    small = ["*.json", "*.txt", "*.model", *_LICENSES]

    def download(*patterns: str) -> Path:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=[*small, *patterns]))

    try:
        found = download("model*.safetensors") if weights else download()
        if weights and not any(found.glob("*.safetensors")):
            found = download("pytorch_model*.bin")
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise InputError(
            f"{key}: {source!r} is neither a directory nor to be had from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); give the path of a downloaded checkpoint"
        ) from error
    return found


def source_record(source: str, directory: Path) -> dict[str, Any]:
    """The description of a checkpoint in a manifest: as it was named, and the commit that the hub gave for it."""
    local = Path(source).expanduser().is_dir()
    cached = not local and directory.parent.name == "snapshots"
    return {"source": source, "hub": not local, "revision": directory.name if cached else None}


def read_config(directory: Path, *, head: bool = True) -> dict[str, Any]:
    """config.json, checked: a known family, no remote code, and where there is a masked-LM `head`, a tied one.

    Raises
    ------
    InputError
        There is none, or it describes a model that cannot be edited.
    """
    path = directory / "config.json"
    if not path.is_file():
        names = ", ".join(sorted(item.name for item in directory.iterdir())[:8])
        raise InputError(f"{directory} has no config.json (it holds {names or 'nothing'}): not a checkpoint")
    config = read_json_object(path)
    for key, expected in _CONFIG_TYPES.items():
        if config.get(key) is not None:
            require_value(config, key, expected, str(path))
    if not all(isinstance(name, str) for name in config.get("architectures") or ()):
        raise InputError(f"{path}: architectures is {config['architectures']!r:.60}, expected names of classes")
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise InputError(f"{path}: model_type is {kind!r}, injection knows {', '.join(FAMILIES)}")
    if "auto_map" in config:
        raise InputError(f"{path} names remote code (auto_map): injection works on the classes of transformers only")
    if config.get("quantization_config"):
        raise InputError(f"{path} describes a quantised checkpoint: give the one before quantisation")
    if head and config.get("tie_word_embeddings", True) is False:
        raise InputError(
            f"{path} has tie_word_embeddings false: the head has a matrix of its own, which would stay behind the "
            "embedding. Inject into the encoder alone (AutoModel.from_pretrained(...).save_pretrained(...)), put its "
            "embedding back; or tie the head first and train on"
        )
    return config


def open_checkpoint(source: str, key: str = "inject.checkpoint") -> Checkpoint:
    """Open a checkpoint with weights.

    Raises
    ------
    InputError
        No weights, an unknown family, untied heads, or an embedding that does not have the config's size; the message
        says what to do.
    """
    directory = locate_checkpoint(source, key)
    config = read_config(directory, head=False)
    family = FAMILIES[config["model_type"]]
    if not config.get("architectures"):
        raise InputError(
            f"{directory / 'config.json'} has no architectures: save the model with save_pretrained, which records "
            "its class"
        )
    tensors, metadata = read_weights(directory)
    if {family.decoder, family.head_bias, family.decoder_bias} & tensors.keys():
        read_config(directory, head=True)
    tensors = _name_tied_copies(tensors, family)
    embedding = _embedding_name(tensors, family, directory)
    metadata = {name: text for name, text in metadata.items() if name not in tensors}
    tensors, dropped = _drop_tied_copies(tensors, embedding, family, directory)
    bias = family.head_bias if family.head_bias in tensors else None
    checkpoint = Checkpoint(source, directory, config, family, tensors, dropped, metadata, embedding, bias)
    _check_shapes(checkpoint)
    return checkpoint


def weight_files(directory: Path) -> list[Path]:
    """The files that hold the weights: safetensors before ``.bin``, the index included.

    Raises
    ------
    InputError
        There are none, or an index names a shard that is missing.
    """
    single = directory / WEIGHTS
    if single.is_file():
        return [single]
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = directory / index_name
        if index.is_file():
            shards = sorted(set(require_texts(read_json_object(index), "weight_map", str(index)).values()))
            outside = [name for name in shards if not _lies_below(name)]
            if outside:
                raise InputError(
                    f"{index} names {', '.join(map(repr, outside[:4]))}, expected names of .safetensors or .bin files "
                    "in its folder: it is damaged or was not written by transformers, and nothing outside is read"
                )
            if not shards:
                raise InputError(f"{index}: weight_map names no file; download it again")
            missing = [name for name in shards if not (directory / name).is_file()]
            if missing:
                raise InputError(f"{index} names {', '.join(missing)}, not found beside it: download the shards again")
            return [index, *(directory / name for name in shards)]
    binary = directory / "pytorch_model.bin"
    if binary.is_file():
        return [binary]
    names = ", ".join(sorted(item.name for item in directory.iterdir())[:8])
    raise InputError(
        f"{directory} has no weights (looked for {WEIGHTS}, sharded safetensors, pytorch_model.bin; it holds {names})"
    )


def _lies_below(name: str) -> bool:
    """Whether the name of a shard is that of a file of weights in the index's folder or below it."""
    path = PurePosixPath(name)
    printable = name.isprintable() and "\\" not in name and len(name) < 256
    return printable and path.suffix in (".safetensors", ".bin") and not path.is_absolute() and ".." not in path.parts


def read_weights(directory: Path) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """All tensors of a checkpoint and its metadata.

    Raises
    ------
    InputError
        There are no weights, or a tensor lies in two files.
    """
    tensors: dict[str, RawTensor] = {}
    metadata: dict[str, str] = {}
    for path in weight_files(directory):
        if path.suffix == ".safetensors":
            part, metadata = read_raw_tensors(path)
        elif path.suffix == ".bin":
            part = _read_bin(path)
        else:
            continue
        doubled = sorted(tensors.keys() & part.keys())
        if doubled:
            raise InputError(f"{path} holds {', '.join(doubled[:4])} a second time: the shards overlap")
        tensors.update(part)
    return tensors, metadata


def _read_bin(path: Path) -> dict[str, RawTensor]:
    import torch

    with open(path, "rb") as stream:
        refuse_lfs_pointer(stream.read(64), str(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's unpickler raises nearly every kind on damaged bytes
        first = [*str(error).splitlines(), type(error).__name__][0]
        raise InputError(
            f"{path} does not load with weights_only ({first}): it is cut short or holds more "
            "than tensors. Convert it with a tool you trust; wals_spark runs no code from a checkpoint"
        ) from None
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, expected a mapping of names to tensors")
    nested = next((name for name in _NESTED if isinstance(state.get(name), Mapping)), None)
    if nested is not None:
        raise InputError(
            f"{path} is a file of a training loop, its tensors lie under {nested!r}: transformers would not find them. "
            "Load them into the model (model.load_state_dict) and save it with save_pretrained"
        )
    return from_torch(state)


def _name_tied_copies(tensors: dict[str, RawTensor], family: ModelFamily) -> dict[str, RawTensor]:
    """Give a tied tensor that lies under its second name alone its first one, as transformers does on load.

    safetensors' own `save_model` keeps one of two shared tensors, whichever comes first by name.
    """
    renamed = {}
    embedding = any(_is_embedding(name) for name in tensors)
    if family.decoder in tensors and not embedding:
        renamed[family.decoder] = family.prefix + EMBEDDING_SUFFIX
    if family.decoder_bias in tensors and family.head_bias not in tensors:
        renamed[family.decoder_bias] = family.head_bias
    return {renamed.get(name, name): tensor for name, tensor in tensors.items()}


def _is_embedding(name: str) -> bool:
    return name == EMBEDDING_SUFFIX or name.endswith("." + EMBEDDING_SUFFIX)


def _embedding_name(tensors: Mapping[str, RawTensor], family: ModelFamily, directory: Path) -> str:
    names = [name for name in tensors if _is_embedding(name)]
    wrappers = sorted({prefix for prefix in _WRAPPERS if any(name.startswith(prefix) for name in tensors)})
    if wrappers:
        raise InputError(
            f"{directory}: names of tensors start with {wrappers[0]!r}, the mark of {_WRAPPERS[wrappers[0]]}: "
            "transformers would not find them. Save the inner model with save_pretrained, which writes names without it"
        )
    if len(names) != 1:
        raise InputError(
            f"{directory}: found {len(names)} tensors named *{EMBEDDING_SUFFIX} ({', '.join(names) or 'none'}), "
            "expected one"
        )
    if names[0] not in (EMBEDDING_SUFFIX, family.prefix + EMBEDDING_SUFFIX):
        raise InputError(
            f"{directory}: the embedding is called {names[0]}, expected {family.prefix}{EMBEDDING_SUFFIX}: "
            f"transformers would not find it under the prefix {names[0].removesuffix(EMBEDDING_SUFFIX)!r}. Save the "
            "model with save_pretrained"
        )
    return names[0]


def _drop_tied_copies(
    tensors: dict[str, RawTensor], embedding: str, family: ModelFamily, directory: Path
) -> tuple[dict[str, RawTensor], tuple[str, ...]]:
    """Drop stored copies of tied tensors.

    transformers 5 ties in both directions on load: a stale ``decoder.weight`` beside a changed embedding
    leaves the two untied, or restores the old matrix where the embedding is missing. A copy that is
    bit-equal is dropped, as `save_pretrained` does; one that differs means an untied head.
    """
    dropped = []
    for copy, original in ((family.decoder, embedding), (family.decoder_bias, family.head_bias)):
        if copy == original or copy not in tensors:
            continue
        if original not in tensors:
            raise InputError(f"{directory} has {copy} but not {original}, which it is tied to: save the model again")
        if not tensors[copy].same_bytes(tensors[original]):
            raise InputError(
                f"{directory}: {copy} differs from {original}, though the config ties them. The head is untied: call "
                "model.tie_weights() and save again if the copy is stale, or inject into the encoder alone"
            )
        dropped.append(copy)
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}, tuple(dropped)


def _check_shapes(checkpoint: Checkpoint) -> None:
    shape = checkpoint.tensors[checkpoint.embedding].shape
    config = checkpoint.config
    width = config.get("hidden_size", config.get("dim"))
    unset = [
        name for name, value in (("vocab_size", config.get("vocab_size")), ("hidden_size", width)) if value is None
    ]
    if unset:
        raise InputError(
            f"{checkpoint.directory / 'config.json'} has no {' and no '.join(unset)}, {checkpoint.embedding} has shape "
            f"{shape}: set it, or save the model again"
        )
    if shape != (config.get("vocab_size"), width):
        raise InputError(
            f"{checkpoint.directory}: {checkpoint.embedding} has shape {shape}, config.json says "
            f"({config.get('vocab_size')}, {width}): the embedding was resized without its config; save the model again"
        )
    if 0 in shape:
        raise InputError(f"{checkpoint.directory}: {checkpoint.embedding} has shape {shape}: it is empty")
    if checkpoint.head_bias is not None:
        bias = checkpoint.tensors[checkpoint.head_bias].shape
        if bias != shape[:1]:
            raise InputError(
                f"{checkpoint.directory}: {checkpoint.head_bias} has shape {bias} for {shape[0]} rows: the head "
                "was not resized with the embedding"
            )


def embedding_values(checkpoint: Checkpoint) -> np.ndarray:
    """The embedding, float32 (V, d).

    Raises
    ------
    InputError
        A row is not finite.
    """
    values = checkpoint.tensors[checkpoint.embedding].values().astype(np.float32, copy=False)
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise InputError(
            f"{checkpoint.directory}: {len(bad)} rows of {checkpoint.embedding} are not finite (first: "
            f"{bad[:5].tolist()}); the checkpoint is damaged"
        )
    return values


def checkpoint_tokenizer(directory: Path) -> LoadedTokenizer:
    """The tokenizer in a checkpoint's directory; tokens that files beside it name as special ones are special.

    Raises
    ------
    InputError
        There is none.
    """
    if not (directory / "tokenizer.json").is_file():
        raise InputError(
            f"{directory} has no tokenizer.json: which row belongs to which token cannot be known. Put there the "
            "tokenizer that the model was trained with (AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    loaded = load_tokenizer(str(directory))
    named = (loaded.tokenizer.token_to_id(token) for token in named_special_tokens(directory))
    return replace(loaded, special_ids=loaded.special_ids | {index for index in named if index is not None})


def protected_ids(tokenizer: LoadedTokenizer, config: Mapping[str, Any], rows: int) -> np.ndarray:
    """Ids whose rows never change: special and reserved tokens, the config's ids, padding rows; ascending int64."""
    protected = set(tokenizer.special_ids)
    protected.update(index for index, token in enumerate(tokenizer.tokens) if _UNUSED.fullmatch(token))
    protected.update(value for name, value in config.items() if name.endswith("_token_id") and isinstance(value, int))
    protected.update(range(len(tokenizer.tokens), rows))
    return np.array(sorted(index for index in protected if 0 <= index < rows), np.int64)


def check_tokenizer(tokenizer: LoadedTokenizer, rows: int, what: str) -> None:
    """Raise `InputError` where a model has fewer rows than its tokenizer has ids; `what` names it in the message."""
    if len(tokenizer.tokens) > rows:
        raise InputError(
            f"{what}: the tokenizer has {len(tokenizer.tokens)} tokens, the embedding {rows} rows: tokens were added "
            "without model.resize_token_embeddings, or the tokenizer belongs to another model"
        )


def companion_files(directory: Path) -> list[Path]:
    """Configuration and tokenizer files that travel with the weights, and licences."""
    found = [directory / name for name in (*_CONFIG_FILES, *TOKENIZER_FILES) if (directory / name).is_file()]
    return found + licence_files(directory)


def licence_files(directory: Path) -> list[Path]:
    """LICENSE, NOTICE and the like."""
    return sorted(path for pattern in _LICENSES for path in directory.glob(pattern) if path.is_file())


def entries_left_behind(directory: Path) -> list[str]:
    """What lies in a checkpoint's directory and does not travel: folders (pooling), modules.json, other weights."""
    carried = {path.name for path in companion_files(directory) + weight_files(directory)} | _NOT_MISSED
    return sorted(path.name for path in directory.iterdir() if path.name not in carried)


def checkpoint_identity(source: str, key: str = "inject.checkpoint", *, weights: bool = True) -> dict[str, Any]:
    """Names, sizes and times of a checkpoint's files, or hashes of small ones, for the fingerprint of a stage."""
    directory = locate_checkpoint(source, key, weights=weights)
    files = companion_files(directory) + (weight_files(directory) if weights else [])
    return {
        "source": source,
        "files": {
            path.name: [path.stat().st_size, path.stat().st_mtime_ns]
            if path.stat().st_size > 1 << 20
            else file_sha256(path)
            for path in files
        },
    }


def has_manifest(directory: str | os.PathLike[str]) -> bool:
    """Whether a directory has injection.json, so that wals_spark wrote it."""
    return (Path(directory) / "injection.json").is_file()
