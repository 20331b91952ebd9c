"""Numbers in words: "twenty five", "a hundred and five", "two thousand", "a dozen", "100"."""

from collections.abc import Sequence

ONE_BY_ONE = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TEN_BY_TEN = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES = {word: value for value, word in enumerate(ONE_BY_ONE.split())}
TENS = {word: 10 * value for value, word in enumerate(TEN_BY_TEN.split(), 2)}
SCALES = (("thousand", 1000), ("hundred", 100), ("dozen", 12))
MAX_DIGITS = 9
Read = tuple[
    int | None, int
]  # the number, and how many words it took; None and 0 where there is none


def read_number(words: Sequence[str]) -> Read:
    """The number that words in lower case begin with; an article alone is none."""
    match words:
        case ["half", "a", "dozen", *_]:
            return 6, 3
        case ["a" | "one", "couple", *_]:
            return 2, 2
    return _scaled(words, 0)


def _scaled(words: Sequence[str], scale: int) -> Read:
    """A number with the scales from SCALES[scale] down: "two hundred and five" is 2 times 100 and 5."""
    if scale == len(SCALES):
        return _below_hundred(words)
    name, size = SCALES[scale]
    times, used = (1, 1) if words[:1] in (["a"], ["an"]) else _scaled(words, scale + 1)
    if times is None or list(words[used : used + 1]) != [name]:
        return _scaled(words, scale + 1)
    start = used + 2 if list(words[used + 1 : used + 2]) == ["and"] else used + 1
    rest, more = _scaled(words[start:], scale + 1)
    return (times * size + rest, start + more) if rest is not None else (times * size, used + 1)


def _below_hundred(words: Sequence[str]) -> Read:
    match words:
        case [tens, unit, *_] if tens in TENS and 0 < ONES.get(unit, 0) < 10:
            return TENS[tens] + ONES[unit], 2
        case [word, *_] if word in TENS or word in ONES:
            return TENS.get(word, ONES.get(word)), 1
        case [word, *_] if word.isdecimal() and len(word) <= MAX_DIGITS:
            return int(word), 1
    return None, 0
