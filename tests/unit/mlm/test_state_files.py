from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wals_spark import storage
from wals_spark.errors import InputError
from wals_spark.mlm.hidden_states import MaskedStates, concatenate_states
from wals_spark.mlm.state_files import (
    LISTING,
    StatePart,
    list_state_parts,
    load_states,
    part_identity,
    read_sequences,
    read_state_part,
    share_of_rank,
    write_sequences,
    write_state_listing,
    write_state_part,
)
from wals_spark.mlm.text_sequences import TextSequences

NAMES = [field.name for field in fields(MaskedStates)]


def random_states(count, seed=0, d=6, k=5):
    generator = np.random.default_rng(seed)
    return MaskedStates(
        generator.standard_normal((count, d)).astype(np.float16),
        generator.integers(0, 99, count).astype(np.int32),
        generator.integers(0, 2**64, count, dtype=np.uint64),
        generator.integers(0, 99, (count, k)).astype(np.int32),
        generator.random(count, np.float32),
        generator.random(count, np.float32),
    )


def assert_same(one, other):
    for name in NAMES:
        found, expected = getattr(one, name), getattr(other, name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("count", [0, 1, 57])
def test_a_part_comes_back_bit_for_bit(tmp_path, count):
    path = str(tmp_path / "part-00000.arrow")
    size = write_state_part(path, random_states(count), "what it is made from")
    assert_same(read_state_part(path), random_states(count))
    assert part_identity(path) == "what it is made from"
    assert (tmp_path / "part-00000.arrow").stat().st_size == size


def test_a_part_on_disk_is_mapped(tmp_path):
    path = str(tmp_path / "part.arrow")
    write_state_part(path, random_states(9))
    assert not read_state_part(path).hidden.flags.writeable


def test_a_part_is_read_from_any_store(tmp_path, monkeypatch):
    path = str(tmp_path / "part.arrow")
    write_state_part(path, random_states(9))
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "read_bytes", lambda uri: (tmp_path / "part.arrow").read_bytes())
    assert_same(read_state_part(path), random_states(9))


def test_a_damaged_part_is_refused_and_has_no_identity(tmp_path):
    path = tmp_path / "part.arrow"
    write_state_part(str(path), random_states(9), "whole")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="is no file of states"):
        read_state_part(str(path))
    assert part_identity(str(path)) is None
    assert part_identity(str(tmp_path / "other")) is None


@pytest.fixture
def stored(tmp_path):
    """Five parts of two splits, listed."""
    parts = []
    for number, (count, split) in enumerate(
        [(10, "training"), (3, "training"), (0, "training"), (7, "training"), (4, "validation")]
    ):
        path = str(tmp_path / f"part-{number:05d}.arrow")
        write_state_part(path, random_states(count, number))
        parts.append(StatePart(path, split, 2, count, 1.5))
    write_state_listing(str(tmp_path), parts, {"checkpoint_sha256": "x"})
    return str(tmp_path), parts


def test_the_listing_names_parts_in_order_and_by_split(stored):
    directory, parts = stored
    assert list_state_parts(directory) == parts
    assert list_state_parts(directory, "validation") == parts[4:]
    assert storage.read_json(storage.join(directory, LISTING))["checkpoint_sha256"] == "x"


def test_without_its_listing_a_directory_holds_no_states(tmp_path):
    with pytest.raises(InputError, match=r"holds no states \(states.json is missing\); run `wals-spark states`"):
        list_state_parts(str(tmp_path))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_shares_of_all_ranks_are_all_states_in_order(stored, ranks):
    _, parts = stored
    shares = [load_states(parts, rank, ranks) for rank in range(ranks)]
    assert_same(concatenate_states(shares), concatenate_states([read_state_part(part.path) for part in parts]))


def test_a_loaded_share_can_be_written_to(stored):
    assert load_states(stored[1], 0, 2).hidden.flags.writeable


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 500), max_size=40), st.integers(1, 9))
def test_shares_are_consecutive_and_even(sizes, ranks):
    parts = [StatePart(str(number), "training", 1, size, 0.0) for number, size in enumerate(sizes)]
    shares = [share_of_rank(parts, rank, ranks) for rank in range(ranks)]
    assert [part for share in shares for part in share] == parts
    positions = [sum(part.positions for part in share) for share in shares]
    assert max(positions) <= sum(sizes) / ranks + max(sizes, default=0)


def test_no_parts_and_a_part_of_another_size_are_refused(stored):
    with pytest.raises(InputError, match="no parts of states"):
        load_states([])
    path = stored[1][0].path
    with pytest.raises(InputError, match=r"has 10 positions, states.json says 11"):
        load_states([StatePart(path, "training", 2, 11, 0.0)])


def test_sequences_come_back_with_their_splits(tmp_path):
    sequences = TextSequences(
        np.arange(9, dtype=np.int32),
        np.array([0, 4, 4, 9]),
        np.array([1, 2**64 - 1, 3], np.uint64),
        np.array([0, 126, 9]),
    )
    path = str(tmp_path / "sequences.arrow")
    write_sequences(path, sequences, ["training", "training", "general"])
    found, splits = read_sequences(path)
    assert splits == ["training", "training", "general"]
    for name in ("tokens", "offsets", "document", "start"):
        assert np.array_equal(getattr(found, name), getattr(sequences, name))


FULL_PROGRAM = """
import resource, signal, sys
import numpy as np
from wals_spark.errors import TransientError
from wals_spark.mlm.hidden_states import MaskedStates
from wals_spark.mlm.state_files import write_state_part
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
n = 1000
states = MaskedStates(np.zeros((n, 768), np.float16), np.zeros(n, np.int32), np.zeros(n, np.uint64),
                      np.zeros((n, 64), np.int32), np.zeros(n, np.float32), np.zeros(n, np.float32))
try:
    write_state_part(sys.argv[1] + "/part-00000.arrow", states)
except TransientError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_leaves_no_part(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "no space left on the device; free some and run again" in done.stdout
    assert list(tmp_path.iterdir()) == []
