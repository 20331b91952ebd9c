"""Numbers in words: "twenty five", "a hundred and five", "two thousand", "a dozen", "100"."""

from collections.abc import Sequence

UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
UNITS = {word: value for value, word in enumerate(UNIT_WORDS.split())}
TENS = {word: 10 * value for value, word in enumerate(TEN_WORDS.split(), 2)}
SCALES = (("thousand", 1000), ("hundred", 100), ("dozen", 12))
MAX_DIGITS = 9
Number = tuple[int | None, int]
"""A number, and how many words it has; None and 0 where there is no number."""


def read_number(words: Sequence[str]) -> Number:
    """Return the number at the beginning of words in lower case.

    An article alone is not a number.
    """
    match words:
        case ["half", "a", "dozen", *_]:
            return 6, 3
        case ["a" | "one", "couple", *_]:
            return 2, 2
    return _read_scaled(words, 0)


def _read_scaled(words: Sequence[str], scale: int) -> Number:
    """Return a number with the scales from SCALES[scale] down.

    For example, "two hundred and five" is 2 times 100, and 5.
    """
    if scale == len(SCALES):
        return _read_below_hundred(words)
    name, size = SCALES[scale]
    times: int | None
    if words and words[0] in ("a", "an"):
        times = 1
        used = 1
    else:
        times, used = _read_scaled(words, scale + 1)
    if times is None or used >= len(words) or words[used] != name:
        return _read_scaled(words, scale + 1)
    used += 1
    start = used
    if start < len(words) and words[start] == "and":
        start += 1
    rest, rest_used = _read_scaled(words[start:], scale + 1)
    if rest is None:
        return times * size, used
    return times * size + rest, start + rest_used


def _read_below_hundred(words: Sequence[str]) -> Number:
    match words:
        case [tens, unit, *_] if tens in TENS and 0 < UNITS.get(unit, 0) < 10:
            return TENS[tens] + UNITS[unit], 2
        case [word, *_] if word in TENS:
            return TENS[word], 1
        case [word, *_] if word in UNITS:
            return UNITS[word], 1
        case [word, *_] if word.isdecimal() and len(word) <= MAX_DIGITS:
            return int(word), 1
    return None, 0
