"""COCO's categories: the ids that detection datasets agree on."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from synthgen.errors import InputError

COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
COCO_IDS: dict[str, int] = {
    name.replace("_", " "): i for i, name in enumerate(COCO_NAMES.split(), 1) if name != "-"
}


def category_ids(names: Iterable[str], own: Mapping[str, int]) -> dict[str, int]:
    """The id of each name: from `own` where it stands there, else COCO's.

    Raises:
        ValueError: a name without an id, or two names with the same one.
    """
    ids: dict[str, int] = {}
    for name in names:
        if name not in own and name not in COCO_IDS:
            close = get_close_matches(
                name, [*own, *COCO_IDS], n=1, cutoff=0.81
            )  # dogs, doog; of a wombat no boat
            hint = f"; did you mean {close[0]!r}? If not, give it" if close else "; give it"
            raise ValueError(
                f"{name!r} is not a COCO category{hint} an id: `categories: {{{name}: 101}}`"
            )
        ids[name] = own.get(name, COCO_IDS.get(name, 0))
        taken = next((n for n, i in ids.items() if i == ids[name] and n != name), None)
        if taken is not None:
            raise ValueError(
                f"{name!r} and {taken!r} have the same id {ids[name]}; give one of them another in `categories`"
            )
    return ids


def told_ids(names: Iterable[str], own: Mapping[str, int], problems: list[str]) -> dict[str, int]:
    """`category_ids` of what a command joins or imports, where ids are given with --ids.

    Raises:
        InputError: there are problems already, or ids are missing or the same.
    """
    if problems:
        raise InputError("\n".join(problems))
    try:
        return category_ids(names, own)
    except ValueError as error:
        raise InputError(str(error).replace("in `categories`", "with --ids")) from None
