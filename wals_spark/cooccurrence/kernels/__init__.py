"""Compiled loops of the counting; `wals_spark.cooccurrence.window` and `.merge` hold the interfaces.

Counting is a sparse product by rows: the positions of every token are listed (a counting sort, `occurrences`), and
the row of token i is summed into a dense accumulator over the windows around its positions (`row_accumulation`). No
pair is ever written down or sorted. What makes it fast: the accumulator fits the second-level cache, positions are
prefetched, the list of touched columns is kept without a branch, and a bitmap of two levels puts them in order
(`column_set`).

Indices are unsigned so that no code for negative ones is made. Importing a module of this package imports numba.
"""
