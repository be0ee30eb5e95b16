"""Domain packs applied to the checkpoint that they were made for: the checkpoint of the domain comes out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wals_spark import storage
from wals_spark.checkpoints.artifact import write_artifact
from wals_spark.checkpoints.atomic_directory import staged_directory
from wals_spark.checkpoints.checkpoint import check_tokenizer, checkpoint_tokenizer, open_checkpoint, protected_ids
from wals_spark.checkpoints.domain_pack import PACK_FILE, read_pack
from wals_spark.checkpoints.edit import base_of_checkpoint
from wals_spark.checkpoints.output_check import OutputOption, check_output, lies_in
from wals_spark.checkpoints.pack_check import APPLY, pack_record
from wals_spark.checkpoints.pack_sum import PackBase, check_pack_base, edit_of_packs, scaled_packs
from wals_spark.checkpoints.raw_tensor import tensor_hashes
from wals_spark.errors import ConfigError

_OPTION = OutputOption("--output", "--overwrite", "--checkpoint")


def apply_packs(
    packs: Sequence[str | Path],
    checkpoint: str,
    output: str,
    *,
    strengths: Sequence[float] = (1.0,),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint that packs make of their base, with the packs beside it; see `pack_sum` for the rule.

    Parameters
    ----------
    packs : sequence of str or Path
        Files; at least one.
    checkpoint : str
        The base that they were made for, a directory or hub name.
    output : str
        The directory to write, a path or URI.
    strengths : sequence of float
        One for all packs or one for each.
    overwrite : bool
        Replace an output that is empty or an earlier result.

    Returns
    -------
    dict of str to object
        The manifest, the content of injection.json.

    Raises
    ------
    ConfigError
        No pack, one given twice or lying in the output, or strengths that do not fit.
    InputError
        A pack is damaged or was made for another checkpoint, the output may not be written, or a row would not be
        finite.
    """
    if not packs:
        raise ConfigError("there is no pack to apply: name one or more")
    check_output(output, replace=overwrite, inputs=[checkpoint], option=_OPTION)
    _refuse_packs_within(packs, output)
    opened = open_checkpoint(checkpoint, "--checkpoint")
    tokenizer = checkpoint_tokenizer(opened.directory)
    check_tokenizer(tokenizer, opened.vocab_size, checkpoint)
    protected = protected_ids(tokenizer, opened.config, opened.vocab_size)
    read = [read_pack(path) for path in packs]
    wanted = PackBase(
        checkpoint,
        tensor_hashes(opened.tensors),
        opened.embedding,
        opened.head_bias,
        (opened.vocab_size, opened.hidden_size),
        tokenizer.hash,
        protected,
    )
    for path, pack in zip(packs, read, strict=True):
        check_pack_base(pack, str(path), wanted)
    scaled = scaled_packs(read, strengths)
    base = base_of_checkpoint(opened, checkpoint, protected)
    edit = edit_of_packs(scaled, base)
    paths = {pack.sha256: path for pack, path in zip(read, packs, strict=True)}
    names = [PACK_FILE if len(read) == 1 else _numbered(number) for number in range(1, len(read) + 1)]
    described = {
        "mode": APPLY,
        "parameters": {"strengths": [each.strength for each in scaled]},
        "factors": None,
        "packs": [pack_record(name, each) for name, each in zip(names, scaled, strict=True)],
    }
    with staged_directory(output, replace=overwrite, inputs=[checkpoint], option=_OPTION) as staging:
        for name, each in zip(names, scaled, strict=True):
            shutil.copyfile(paths[each.pack.sha256], staging / name)
        return write_artifact(staging, base, edit, None, described)


def _numbered(number: int) -> str:
    return PACK_FILE.replace(".", f"-{number}.", 1)


def _refuse_packs_within(packs: Sequence[str | Path], output: str) -> None:
    """Raise `ConfigError` where the output would replace a directory that holds one of the packs."""
    if not storage.is_local(output) or not storage.exists(output):
        return
    target = storage.absolute(output)
    held = next((str(path) for path in packs if lies_in(str(path), target)), None)
    if held is not None:
        raise ConfigError(
            f"--output: {output} holds the pack {held}, which a result may not replace; choose another directory"
        )
