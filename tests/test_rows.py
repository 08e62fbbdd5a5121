"""Rows of an update: cut, joined, and dealt to the ranks so that none waits for another."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from ranks import assert_rows, on_ranks, rows_of

from vrlvr.distributed import World
from vrlvr.rows import dealt_evenly, joined

TERMS_OF = [3, 1, 2, 1, 1, 4, 1, 1, 1, 2, 1, 1]


@given(bounds=st.lists(st.integers(0, len(TERMS_OF)), max_size=4))
def test_parts_are_joined_to_the_whole(bounds: list[int]) -> None:
    cuts = [0, *sorted(bounds), len(TERMS_OF)]
    rows = rows_of(range(len(TERMS_OF)), TERMS_OF)
    parts = [rows.part(start, stop) for start, stop in pairwise(cuts)]
    for part, (start, stop) in zip(parts, pairwise(cuts), strict=True):
        assert_rows(part, range(start, stop), TERMS_OF)
    assert_rows(joined(parts), range(len(TERMS_OF)), TERMS_OF)


def test_one_process_keeps_its_rows() -> None:
    rows = rows_of(range(5), TERMS_OF)
    assert dealt_evenly(rows, World()) is rows


def test_rows_are_dealt_evenly_whoever_had_them() -> None:
    """In their order, each with its terms. The world asserts what each rank has thereafter."""
    numbers = [[4, 4, 4], [12, 0, 0], [0, 0, 11], [0, 7, 1], [1, 0, 1], [0, 0, 0], [5, 2, 3]]
    on_ranks(3, "dealt", {"numbers": numbers, "terms_of": TERMS_OF})
