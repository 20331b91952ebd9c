"""The meaning of a sentence for a job: objects, their looks, and the background.

In "ten cats and three brown dogs in a park", a count and a known category are objects, and the
words between them are their looks. What follows a place word ("in", "on", "at", ...) is the
background, up to the next objects. In it, "a dog" is part of the place, but "two dogs" and "with a
dog" are objects.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from synthgen.annotations import DEFAULT_PHRASE
from synthgen.errors import InputError
from synthgen.speech import Spoken
from synthgen.speech.categories import list_spoken_names, split_words
from synthgen.speech.numbers import SCALES, TENS, UNITS, read_number

TOKEN = re.compile(r"\d{1,3}(?:,\d{3})+|[^\W_]+(?:['\u2019][^\W_]+)*|[,.;:!?]")
PUNCTUATION = frozenset(",.;:!?")
ARTICLES = frozenset(("a", "an"))
PLACE_WORDS = (
    "in_front_of in_the_middle_of on_top_of next_to close_to in on at with inside outside under "
    "near beside by behind below above over against along among around between across"
)
PLACES = tuple(tuple(place.split("_")) for place in PLACE_WORDS.split())
FILLER_WORDS = (
    "a an the of and plus with please i we want would like need to see show me us let give make "
    "draw paint generate create picture pictures photo photos photograph image images painting "
    "scene there is are"
)
FILLERS = PUNCTUATION | frozenset(FILLER_WORDS.split())
# Words that are not looks. A comma may stand between looks: "five big, white dogs".
NO_LOOKS = (FILLERS | UNITS.keys() | TENS.keys() | dict(SCALES).keys()) - {","}
NO_LOOKS |= {place[0] for place in PLACES}
MAX_LOOKS = 3  # words between a count and its category


@dataclass(frozen=True)
class Group:
    """Objects of one category.

    Attributes:
        category: the category.
        count: the number of objects.
        looks: the words between count and category.
        end: the index after the last word of the group.
    """

    category: str
    count: int
    looks: str
    end: int


def understand(spoken: Spoken, categories: Iterable[str]) -> Spoken:
    """Return a spoken prompt with its meaning.

    Without a count of a known category, the whole text is the background.

    Raises:
        InputError: the text holds no words.
    """
    sentence = Sentence(spoken.text, categories)
    if PUNCTUATION.issuperset(sentence.words):
        raise InputError(
            f"spoken: {spoken.text!r} holds no words; right would be: one hundred dogs in a park"
        )
    groups, places, missed = sentence.parse()
    if not groups:
        return spoken.model_copy(update={"background": spoken.text.strip(" .,;:!?")})
    counts: dict[str, int] = {}
    prompts: dict[str, list[str]] = {}
    for group in groups:
        counts[group.category] = counts.get(group.category, 0) + group.count
        prompt = DEFAULT_PHRASE
        if group.looks:
            article = "an" if group.looks[0] in "aeiou" else "a"
            prompt = f"{article} {group.looks} {{category}}"
        options = prompts.setdefault(group.category, [])
        if prompt not in options:
            options.append(prompt)
    phrases = {}
    for name, options in prompts.items():
        if options != [DEFAULT_PHRASE]:
            phrases[name] = tuple(options)
    return spoken.model_copy(
        update={
            "objects": counts,
            "phrases": phrases,
            "background": ", ".join(filter(None, places)) or None,
            "missed": tuple(missed),
        }
    )


class Sentence:
    """The words of a text, and the span of each in it."""

    def __init__(self, text: str, categories: Iterable[str]) -> None:
        self.text = text
        self.spans: list[tuple[int, int]] = []
        self.words: list[str] = []
        for match in TOKEN.finditer(text):
            self.spans.append(match.span())
            self.words.append(match[0].lower().replace(",", "") or ",")
        self.names = list_spoken_names(categories)
        self.longest_name = max(map(len, self.names), default=0)

    def parse(self) -> tuple[list[Group], list[str], list[str]]:
        """Return the groups of objects, the places, and the words that belong to neither."""
        groups: list[Group] = []
        places: list[str] = []
        missed: list[str] = []
        place = self.find_leading_place()  # the first word of the place that is being read
        i = place or 0
        while i < len(self.words):
            articles_count = place is None or self.words[i - 1] == "with"
            group = self.read_group(i, articles_count)
            place_words = 0
            if place is None and not self.is_with_before_group(i):
                place_words = self.match_place(i)
            if group is not None:
                groups.append(group)
                if place is not None:
                    places.append(self.slice_text(place, i))
                    place = None
                i = group.end
            elif place_words:
                i += place_words
                place = i
            else:
                if place is None and self.words[i] not in FILLERS:
                    missed.append(self.words[i])
                i += 1
        if place is not None:
            places.append(self.slice_text(place, i))
        return groups, places, missed

    def find_leading_place(self) -> int | None:
        """Return where the place begins in "a park with two benches".

        None if the text does not begin with a place.
        """
        end = 0
        while end < len(self.words) and not self.is_with_before_group(end):
            end += 1
        if end == len(self.words):
            return None
        for i in range(end):
            if self.read_group(i, articles_count=True) or self.match_place(i):
                return None
        for i in range(end):
            if self.words[i] not in FILLERS:
                has_article = i > 0 and self.words[i - 1] in ARTICLES
                return i - 1 if has_article else i
        return None

    def is_with_before_group(self, i: int) -> bool:
        """Return whether word i is a "with" that is followed by objects."""
        return self.words[i] == "with" and self.read_group(i + 1, articles_count=True) is not None

    def read_group(self, start: int, articles_count: bool) -> Group | None:
        """Return the group of objects that begins at a word.

        Args:
            articles_count: whether "a dog" is a group.
        """
        if start >= len(self.words):
            return None
        word = self.words[start]
        count, used = read_number(self.words[start:])
        if count is None and word == "no":
            count = 0
            used = 1
        if count is None and articles_count and word in ARTICLES:
            count = 1
            used = 1
        if count is None:
            return None
        first = start + used
        if first < len(self.words) and self.words[first] == "of":
            first += 1
        return self.read_category(first, count)

    def read_category(self, first: int, count: int) -> Group | None:
        """Return a group of the category that is named at a word, or after some looks.

        A category before another one is a look: "two orange cats".
        """
        for i in range(first, min(first + MAX_LOOKS + 1, len(self.words))):
            length = self.match_category(i)
            if not length:
                if self.words[i] in NO_LOOKS or self.words[i].isdecimal():
                    return None
                continue
            name = tuple(self.words[i : i + length])
            category = self.names[name]
            is_look = name == split_words(category) and self.match_category(i + length)
            if not is_look:
                looks = [word for word in self.words[first:i] if word not in PUNCTUATION]
                return Group(category, count, " ".join(looks), i + length)
        return None

    def match_category(self, i: int) -> int:
        """Return how many words from word i name a category, the longest name first; else 0."""
        for length in range(self.longest_name, 0, -1):
            if tuple(self.words[i : i + length]) in self.names:
                return length
        return 0

    def match_place(self, i: int) -> int:
        """Return how many words from word i are a place word; 0 if it is none."""
        for place in PLACES:
            if tuple(self.words[i : i + len(place)]) == place:
                return len(place)
        return 0

    def slice_text(self, start: int, end: int) -> str:
        """Return the text of the words in [start, end), without fillers at its end."""
        while end > start and self.words[end - 1] in FILLERS:
            end -= 1
        if end <= start:
            return ""
        return self.text[self.spans[start][0] : self.spans[end - 1][1]]
