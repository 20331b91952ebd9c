"""The names of categories in speech: singular, plural, and synonyms."""

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
SYNONYMS = {
    "aeroplane": "airplane",
    "bike": "bicycle",
    "cellphone": "cell phone",
    "doughnut": "donut",
    "fridge": "refrigerator",
    "hair dryer": "hair drier",
    "mobile phone": "cell phone",
    "motorbike": "motorcycle",
    "phone": "cell phone",
    "plane": "airplane",
    "plant": "potted plant",
    "ski": "skis",
    "sofa": "couch",
    "television": "tv",
}


def list_spoken_names(categories: Iterable[str]) -> dict[Words, str]:
    """Return the names of categories in speech, and the category of each.

    A name is a tuple of words in lower case, in the singular or plural: ("teddy", "bears") is a
    name of "teddy bear".
    """
    known = {split_words(name): name for name in categories}
    names: dict[Words, str] = {}
    for synonym, name in SYNONYMS.items():
        category = known.get(split_words(name))
        if category is not None:
            names[split_words(synonym)] = category
    names |= known
    plurals = {pluralise(words): name for words, name in names.items()}
    return plurals | names


def split_words(text: str) -> Words:
    """Return the words of a name in lower case: "<rex> dog" is ("rex", "dog")."""
    letters = [character if character.isalnum() else " " for character in text.lower()]
    return tuple("".join(letters).split())


def pluralise(words: Words) -> Words:
    """Return a name with its last word in the plural."""
    *first, last = words or ("",)
    if last in PLURALS:
        return (*first, PLURALS[last])
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return (*first, last + "es")
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return (*first, last[:-1] + "ies")
    if last.endswith("ife"):
        return (*first, last[:-2] + "ves")
    return (*first, last + "s")
