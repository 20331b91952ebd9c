"""Numbers in words are read back from words made of numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.speech.numbers import TEN_WORDS, UNIT_WORDS, read_number

UNITS = UNIT_WORDS.split()
TENS = ["", "", *TEN_WORDS.split()]


def in_words(number: int, joint: str) -> str:
    """Return a number in words: 342 is three hundred and forty two.

    Args:
        joint: the text between a scale and the rest.
    """
    for name, size in (("thousand", 1000), ("hundred", 100)):
        if number >= size:
            rest = f"{joint}{in_words(number % size, joint)}" if number % size else ""
            return f"{in_words(number // size, joint)} {name}{rest}"
    if number < 20:
        return UNITS[number]
    tens, unit = divmod(number, 10)
    return f"{TENS[tens]} {UNITS[unit]}" if unit else TENS[tens]


@given(st.integers(0, 999_999), st.sampled_from([" ", " and "]))
def test_every_number_is_read_back(number: int, joint: str) -> None:
    words = in_words(number, joint).split()
    assert read_number([*words, "dogs", "and", "two", "cats"]) == (number, len(words))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 dogs", (100, 1)),
        ("a hundred and five dogs", (105, 4)),
        ("a dozen dogs", (12, 2)),
        ("two dozen", (24, 2)),
        ("half a dozen eggs", (6, 3)),
        ("a couple of", (2, 2)),
        ("2 thousand", (2000, 2)),
        ("zero", (0, 1)),
        ("a dog", (None, 0)),
        ("and five", (None, 0)),
        ("", (None, 0)),
        ("9" * 5000, (None, 0)),
        ("hundred dogs", (None, 0)),
        ("five twenty", (5, 1)),
        ("one hundred and dogs", (100, 2)),
    ],
)
def test_other_forms_of_numbers_are_read(text: str, expected: tuple[int | None, int]) -> None:
    assert read_number(text.split()) == expected
