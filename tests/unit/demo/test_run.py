from __future__ import annotations

from wals_spark.demo.run import table


def test_a_table_is_aligned():
    shown = table(["a", "number"], [["first", "1"], ["x", "22"]])
    assert shown.splitlines() == ["a      number", "-----  ------", "first       1", "x          22"]
