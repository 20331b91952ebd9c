"""COCO's categories, with the ids that detection datasets agree on."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from synthgen.errors import InputError

COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - "
    "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe - "
    "backpack umbrella - - handbag tie suitcase frisbee skis snowboard sports_ball kite "
    "baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - wine_glass cup fork "
    "knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone "
    "microwave oven toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier "
    "toothbrush"
)
COCO_IDS: dict[str, int] = {
    name.replace("_", " "): i for i, name in enumerate(COCO_NAMES.split(), 1) if name != "-"
}
LEAST_SIMILARITY = 0.81
"""Similarity from which a name is suggested: "dog" for "dogs", but not "boat" for "wombat"."""


def find_category_ids(names: Iterable[str], own: Mapping[str, int]) -> dict[str, int]:
    """Return the id of each name: the one in `own` if there is one, else COCO's.

    Raises:
        ValueError: a name has no id, or two names have the same one.
    """
    ids: dict[str, int] = {}
    for name in names:
        if name in own:
            number = own[name]
        elif name in COCO_IDS:
            number = COCO_IDS[name]
        else:
            raise ValueError(_describe_missing_id(name, own))
        for other, other_number in ids.items():
            if other_number == number and other != name:
                raise ValueError(
                    f"{name!r} and {other!r} have the same id {number}; "
                    "give one of them another in `categories`"
                )
        ids[name] = number
    return ids


def _describe_missing_id(name: str, own: Mapping[str, int]) -> str:
    close = get_close_matches(name, [*own, *COCO_IDS], n=1, cutoff=LEAST_SIMILARITY)
    hint = f"; did you mean {close[0]!r}? If not, give it" if close else "; give it"
    return f"{name!r} is not a COCO category{hint} an id: `categories: {{{name}: 101}}`"


def find_given_category_ids(
    names: Iterable[str], own: Mapping[str, int], problems: list[str]
) -> dict[str, int]:
    """Return the result of `find_category_ids` for a command that takes ids as --ids.

    Args:
        problems: what the command has found wrong so far.

    Raises:
        InputError: there are problems, or an id is missing or given twice.
    """
    if problems:
        raise InputError("\n".join(problems))
    try:
        return find_category_ids(names, own)
    except ValueError as error:
        raise InputError(str(error).replace("in `categories`", "with --ids")) from None
