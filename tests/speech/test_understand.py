"""The meaning of sentences for a job."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthgen.dataset.categories import COCO_IDS
from synthgen.errors import InputError
from synthgen.speech import Spoken
from synthgen.speech.categories import pluralise
from synthgen.speech.understand import FILLERS, understand
from tests.speech.test_numbers import in_words

BROWN = ("a brown {category}",)
Sentence = tuple[str, dict[str, int], dict[str, tuple[str, ...]], str | None, str]
"""A text, its objects, phrases and background, and the words that are not understood."""

SENTENCES: list[Sentence] = [
    ("One hundred dogs in a park.", {"dog": 100}, {}, "a park", ""),
    ("100 dogs in a park", {"dog": 100}, {}, "a park", ""),
    ("1,000 sheep on a Green Field!", {"sheep": 1000}, {}, "a Green Field", ""),
    (
        "ten cats and three brown dogs in a park",
        {"cat": 10, "dog": 3},
        {"dog": BROWN},
        "a park",
        "",
    ),
    ("Twenty-five hot dogs on a table", {"hot dog": 25}, {}, "a table", ""),
    (
        "two people and a teddy bear at the beach",
        {"person": 2, "teddy bear": 1},
        {},
        "the beach",
        "",
    ),
    (
        "ten brown dogs and five big, white dogs",
        {"dog": 15},
        {"dog": (*BROWN, "a big white {category}")},
        None,
        "",
    ),
    (
        "Ten dogs in Central Park and five orange cats on a red bench.",
        {"dog": 10, "cat": 5},
        {"cat": ("an orange {category}",)},
        "Central Park, a red bench",
        "",
    ),
    ("In a park, there are a hundred and five dogs.", {"dog": 105}, {}, "a park", ""),
    (
        "a picture of a dog with a blue kite in the rain",
        {"dog": 1, "kite": 1},
        {"kite": ("a blue {category}",)},
        "the rain",
        "",
    ),
    ("A sunny street with a car and two buses", {"car": 1, "bus": 2}, {}, "A sunny street", ""),
    ("five oranges", {"orange": 5}, {}, None, ""),
    ("two cats in front of a house", {"cat": 2}, {}, "a house", ""),
    ("no dogs in a street", {"dog": 0}, {}, "a street", ""),
    ("one hundred dog litter park", {"dog": 100}, {}, None, "litter park"),
    ("ten dogs running in the snow", {"dog": 10}, {}, "the snow", "running"),
    ("three dogs and seven wombats in a park", {"dog": 3}, {}, "a park", "seven wombats"),
    ("a foggy street in the rain", {}, {}, "a foggy street in the rain", ""),
    ("one hundred wombats in a park.", {}, {}, "one hundred wombats in a park", ""),
]


@pytest.mark.parametrize(
    ("text", "objects", "phrases", "background", "missed"),
    SENTENCES,
    ids=[sentence[0] for sentence in SENTENCES],
)
def test_a_sentence_is_understood(
    text: str,
    objects: dict[str, int],
    phrases: dict[str, tuple[str, ...]],
    background: str | None,
    missed: str,
) -> None:
    spoken = understand(Spoken(text=text), COCO_IDS)
    assert (spoken.objects, spoken.phrases, spoken.background) == (objects, phrases, background)
    assert " ".join(spoken.missed) == missed


@given(
    st.lists(
        st.tuples(st.integers(2, 3000), st.sampled_from(sorted(COCO_IDS))),
        min_size=1,
        max_size=4,
        unique_by=lambda group: group[1],
    )
)
def test_groups_of_all_categories_are_understood(groups: list[tuple[int, str]]) -> None:
    texts = []
    for number, name in groups:
        category = " ".join(pluralise(tuple(name.split())))
        texts.append(f"{in_words(number, ' and ')} {category}")
    text = f"{' and '.join(texts)} on a meadow"
    spoken = understand(Spoken(text=text), COCO_IDS)
    assert spoken.objects == {name: number for number, name in groups}
    assert (spoken.background, spoken.phrases, spoken.missed) == ("a meadow", {}, ())


WORDS = {*FILLERS, "in", "two", "hundred", "dogs", "dog", "cat", "red", "no", "hot"}


@given(st.lists(st.sampled_from(sorted(WORDS)), max_size=12))
def test_no_word_is_lost_in_any_order(words: list[str]) -> None:
    try:
        spoken = understand(Spoken(text=" ".join(words)), COCO_IDS)
    except InputError:
        assert not any(word.isalnum() for word in words)
        return
    used = f"{spoken.background} {spoken.phrases} {spoken.missed} {spoken.objects}"
    assert ("red" in words) <= ("red" in used)
    assert all(count >= 0 for count in spoken.objects.values())


@given(st.text(max_size=60))
def test_any_text_with_words_has_a_meaning(text: str) -> None:
    try:
        spoken = understand(Spoken(text=text), COCO_IDS)
    except InputError:
        assert not any(character.isalnum() for character in text)
        return
    assert spoken.objects or spoken.background


def test_the_meaning_is_shown_with_the_words_that_are_not_understood() -> None:
    text = "ten cats and three brown dogs playing in a park"
    assert understand(Spoken(text=text), COCO_IDS).describe_meaning() == [
        "understood: 10 x cat, 3 x dog, dog as 'a brown dog', background 'a park'",
        "not understood: playing",
    ]
    _, second = understand(Spoken(text="a park"), COCO_IDS).describe_meaning()
    assert second == "no count of a known category: the layout is not changed"
