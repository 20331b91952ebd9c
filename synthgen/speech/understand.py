"""A sentence as what a job can hold: how many of which categories, what they look like, and where they are.

"ten cats and three brown dogs in a park": what is counted and known is an object, the words between are its looks, and what
follows a place word ("in", "on", "at", ...) is the background, up to the next object. There "a dog" is part of the place,
"two dogs" or "with a dog" is not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from synthgen.annotations import DEFAULT_PHRASE
from synthgen.errors import InputError
from synthgen.speech import Spoken
from synthgen.speech.categories import spoken_names, words_of
from synthgen.speech.numbers import ONES, SCALES, TENS, read_number

TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+|[^\W_]+(?:['\u2019][^\W_]+)*|[,.;:!?]")
PUNCTUATION = frozenset(",.;:!?")
ARTICLES = frozenset(("a", "an"))
PLACE_WORDS = (
    "in_front_of in_the_middle_of on_top_of next_to close_to in on at with inside outside under near beside by behind below "
    "above over against along among around between across"
)
PLACES = tuple(tuple(place.split("_")) for place in PLACE_WORDS.split())
FILLER_WORDS = (
    "a an the of and plus with please i we want would like need to see show me us let give make draw paint generate create "
    "picture pictures photo photos photograph image images painting scene there is are"
)
FILLERS = PUNCTUATION | frozenset(FILLER_WORDS.split())
NO_LOOKS = (
    FILLERS
    | ONES.keys()
    | TENS.keys()
    | {name for name, _ in SCALES}
    | {place[0] for place in PLACES}
)
MOST_LOOKS = 3  # words between a count and its category


@dataclass(frozen=True)
class Group:
    """Some objects of one category, and the index after their last word."""

    category: str
    count: int
    looks: str
    end: int


def understand(said: Spoken, categories: Iterable[str]) -> Spoken:
    """The same words, with what they mean; without a count of a known category all of them are the background.

    Raises:
        InputError: there are none.
    """
    sentence = Sentence(said.text, categories)
    if PUNCTUATION.issuperset(sentence.words):
        raise InputError(
            f"spoken: {said.text!r} holds no words; right would be: one hundred dogs in a park"
        )
    groups, places, missed = sentence.parts()
    if not groups:
        return said.model_copy(update={"background": said.text.strip(" .,;:!?")})
    counts: dict[str, int] = {}
    phrases: dict[str, tuple[str, ...]] = {}
    for group in groups:
        counts[group.category] = counts.get(group.category, 0) + group.count
        looks = (
            f"{_article(group.looks)} {group.looks} {{category}}"
            if group.looks
            else DEFAULT_PHRASE,
        )
        phrases[group.category] = tuple(dict.fromkeys(phrases.get(group.category, ()) + looks))
    phrases = {name: options for name, options in phrases.items() if options != (DEFAULT_PHRASE,)}
    background = ", ".join(filter(None, places)) or None
    return said.model_copy(
        update={"objects": counts, "phrases": phrases, "background": background, "missed": missed}
    )


def _article(words: str) -> str:
    return "an" if words[0] in "aeiou" else "a"


class Sentence:
    """The words of a text, and where in it they stand."""

    def __init__(self, text: str, categories: Iterable[str]) -> None:
        found = list(TOKEN.finditer(text))
        self.text, self.spans = text, [m.span() for m in found]
        self.words = [m[0].lower().replace(",", "") or "," for m in found]
        self.names = spoken_names(categories)
        self.longest = max(map(len, self.names), default=0)

    def parts(self) -> tuple[list[Group], list[str], tuple[str, ...]]:
        """The groups of objects, the places, and the words that are part of neither."""
        groups: list[Group] = []
        places: list[str] = []
        missed: list[str] = []
        place = self.leading_place()  # where the place that is being read begins
        i = place or 0
        while i < len(self.words):
            group = self.group(i, articles=place is None or self.words[i - 1] == "with")
            opens = self.place(i) if place is None and not self.with_group(i) else 0
            if group is not None:
                groups.append(group)
                places += [] if place is None else [self.between(place, i)]
                i, place = group.end, None
            elif opens:
                i = place = i + opens
            else:
                missed += [self.words[i]] if place is None and self.words[i] not in FILLERS else []
                i += 1
        places += [] if place is None else [self.between(place, i)]
        return groups, places, tuple(missed)

    def leading_place(self) -> int | None:
        """Where the place begins in "a park with two benches"; None if the text does not begin like that."""
        end = next((i for i in range(len(self.words)) if self.with_group(i)), 0)
        if any(self.group(i, articles=True) or self.place(i) for i in range(end)):
            return None
        first = next((i for i in range(end) if self.words[i] not in FILLERS), None)
        return first - 1 if first and self.words[first - 1] in ARTICLES else first

    def with_group(self, i: int) -> bool:
        """Whether this is the "with" that more objects follow."""
        return self.words[i] == "with" and self.group(i + 1, articles=True) is not None

    def group(self, start: int, articles: bool) -> Group | None:
        """The counted objects that begin here; "a dog" is one only with `articles`."""
        count, used = read_number(self.words[start:])
        if count is None and (self.words[start : start + 1] == ["no"]):
            count, used = 0, 1
        if count is None and articles and ARTICLES.issuperset(self.words[start : start + 1]):
            count, used = 1, 1
        if count is None:
            return None
        first = start + used + (self.words[start + used : start + used + 1] == ["of"])
        return self.named(first, count)

    def named(self, first: int, count: int) -> Group | None:
        """The category that is named here, or after words on its looks."""
        for i in range(first, min(first + MOST_LOOKS + 1, len(self.words))):
            length = self.category(i)
            words = tuple(self.words[i : i + length])
            if length and not (words == words_of(self.names[words]) and self.category(i + length)):
                looks = " ".join(w for w in self.words[first:i] if w not in PUNCTUATION)
                return Group(self.names[words], count, looks, i + length)
            if not length and (self.words[i] in NO_LOOKS - {","} or self.words[i].isdecimal()):
                return None
        return None

    def category(self, i: int) -> int:
        """How many words from here on name a category, the longest name first; 0 if none does."""
        return next(
            (n for n in range(self.longest, 0, -1) if tuple(self.words[i : i + n]) in self.names), 0
        )

    def place(self, i: int) -> int:
        """How many words from here on are a place word."""
        return next((len(p) for p in PLACES if tuple(self.words[i : i + len(p)]) == p), 0)

    def between(self, start: int, end: int) -> str:
        """The text from one word up to another, without what joins it to the next part."""
        while end > start and self.words[end - 1] in FILLERS:
            end -= 1
        return self.text[self.spans[start][0] : self.spans[end - 1][1]] if end > start else ""
