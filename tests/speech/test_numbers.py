"""Numbers in words, against words made from numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.speech.numbers import ONE_BY_ONE, TEN_BY_TEN, read_number

ONES, TENS = ONE_BY_ONE.split(), ["", "", *TEN_BY_TEN.split()]


def in_words(number: int, joint: str) -> str:
    """The other direction: 342 is three hundred and forty two."""
    for name, size in (("thousand", 1000), ("hundred", 100)):
        if number >= size:
            rest = f"{joint}{in_words(number % size, joint)}" if number % size else ""
            return f"{in_words(number // size, joint)} {name}{rest}"
    return (
        ONES[number]
        if number < 20
        else f"{TENS[number // 10]} {ONES[number % 10] if number % 10 else ''}".strip()
    )


@given(st.integers(0, 999_999), st.sampled_from([" ", " and "]))
def test_every_number_is_read_back(number: int, joint: str) -> None:
    words = in_words(number, joint).split()
    assert read_number([*words, "dogs", "and", "two", "cats"]) == (number, len(words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 dogs", (100, 1)), ("a hundred and five dogs", (105, 4)), ("a dozen dogs", (12, 2)), ("two dozen", (24, 2)),
        ("half a dozen eggs", (6, 3)), ("a couple of", (2, 2)), ("2 thousand", (2000, 2)), ("zero", (0, 1)),
        ("a dog", (None, 0)), ("and five", (None, 0)), ("", (None, 0)), ("9" * 5000, (None, 0)),
        ("hundred dogs", (None, 0)), ("five twenty", (5, 1)), ("one hundred and dogs", (100, 2)),
    ],
)  # fmt: skip
def test_other_forms(text: str, expected: tuple[int | None, int]) -> None:
    assert read_number(text.split()) == expected
