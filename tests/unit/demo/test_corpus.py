from __future__ import annotations

import re
import textwrap
import tomllib
from pathlib import Path

import pytest

from wals_spark.demo import corpus
from wals_spark.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
LONG = "Explain in some detail what this function does with the numbers that it is given, and why."


def write(path, text):
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def test_doctest_blocks_are_left_out():
    text = "Add.\n\nExamples\n--------\n>>> add(1, 2)\n3\n\nSee also sub.\n\n\n\nEnd."
    assert corpus.without_examples(text) == "Add.\n\nExamples\n--------\n\nSee also sub.\n\nEnd."


def test_docstrings_come_in_the_order_of_the_file(tmp_path):
    path = write(
        tmp_path / "m.py",
        f'''
        """Module. {LONG}"""
        class A:
            """Class. {LONG}"""
            async def f(self):
                """Method. {LONG}"""
        def g():
            """Function. {LONG}"""
        def short():
            """Too short."""
        ''',
    )
    assert [text.split(".")[0] for text in corpus.docstrings(path)] == ["Module", "Class", "Method", "Function"]


def test_a_file_that_does_not_parse_gives_nothing(tmp_path):
    assert corpus.docstrings(write(tmp_path / "old.py", "print 'python 2'")) == []


def test_nothing_is_imported(tmp_path):
    marker = tmp_path / "ran"
    path = write(tmp_path / "m.py", f'"""{LONG}"""\nopen({str(marker)!r}, "w")')
    assert corpus.docstrings(path) == [LONG]
    assert not marker.exists()


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    first = write(tmp_path / "a.py", f'"""One. {LONG}"""\ndef f():\n    """Both. {LONG}"""\n')
    second = write(tmp_path / "b.py", f'"""Both. {LONG}"""\n')
    third = write(tmp_path / "c.py", f'"""Two. {LONG}"""\ndef f():\n    """Both. {LONG}"""\n')
    files = [("a.py", first), ("b.py", second), ("c.py", third)]
    monkeypatch.setattr(corpus, "source_files", lambda package: files)


def test_a_docstring_is_taken_once(two_files):
    found = dict(corpus.documents(["p"]))
    assert list(found) == ["a.py", "c.py"]
    assert found["c.py"] == f"Two. {LONG}"


def test_the_same_packages_give_the_same_bytes(two_files, tmp_path):
    facts = corpus.write_corpus(str(tmp_path / "one.jsonl"), ["p"])
    corpus.write_corpus(str(tmp_path / "two.jsonl"), ["p"])
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert facts["documents"] == 2
    assert list(corpus.read_corpus(str(tmp_path / "one.jsonl")))[1] == f"Two. {LONG}"


def test_packages_that_are_not_there_are_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no docstrings found in no-such-package"):
        corpus.write_corpus(str(tmp_path / "x.jsonl"), ["no-such-package"])


def test_source_files_are_sorted_and_without_tests():
    names = [name for name, _ in corpus.source_files("networkx")]
    assert names == sorted(names)
    assert len(names) > 100
    assert not any("/tests/" in name for name in names)


def test_a_missing_package_is_refused_with_what_installs_it():
    with pytest.raises(InputError, match=r"no-such-package is not installed: pip install 'wals_spark\[demo\]'"):
        corpus.require(("numpy", "no-such-package"))


def test_the_demo_extra_holds_the_packages_that_are_no_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {re.match(r"[\w-]+", line)[0] for line in project["optional-dependencies"]["demo"]}
    needed = {re.match(r"[\w-]+", line)[0] for line in project["dependencies"]}
    assert set(corpus.PACKAGES) == (set(corpus.PACKAGES) & needed) | extra
