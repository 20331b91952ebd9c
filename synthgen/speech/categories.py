"""What categories are called: one of them, several, and other names."""

from collections.abc import Iterable

Words = tuple[str, ...]
PLURALS = {
    "person": "people",
    "mouse": "mice",
    "sheep": "sheep",
    "skis": "skis",
    "scissors": "scissors",
    "broccoli": "broccoli",
}
OTHER_NAMES = {
    "aeroplane": "airplane", "bike": "bicycle", "cellphone": "cell phone", "doughnut": "donut", "fridge": "refrigerator",
    "hair dryer": "hair drier", "mobile phone": "cell phone", "motorbike": "motorcycle", "phone": "cell phone",
    "plane": "airplane", "plant": "potted plant", "ski": "skis", "sofa": "couch", "television": "tv",
}  # fmt: skip


def spoken_names(categories: Iterable[str]) -> dict[Words, str]:
    """The category of each of its names, in words of lower case, for one and for several: ("teddy", "bears") is "teddy bear"."""
    known = {words_of(name): name for name in categories}
    others = {
        words_of(other): name for other, name in OTHER_NAMES.items() if words_of(name) in known
    }
    names = {**{words: known[words_of(name)] for words, name in others.items()}, **known}
    return {**{plural(words): name for words, name in names.items()}, **names}


def words_of(text: str) -> Words:
    """The words of a name in lower case, without signs: "<rex> dog" is ("rex", "dog")."""
    return tuple("".join(c if c.isalnum() else " " for c in text.lower()).split())


def plural(words: Words) -> Words:
    """The name of several: its last word in the plural."""
    *first, last = words or ("",)
    if last in PLURALS:
        return (*first, PLURALS[last])
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return (*first, last + "es")
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return (*first, last[:-1] + "ies")
    return (*first, last[:-2] + "ves" if last.endswith("ife") else last + "s")
