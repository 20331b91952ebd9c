"""Pictures of records: bytes that every reader sees alike are kept, all others are made so, damaged ones are named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from synthgen.formats.entries import BadEntryError
from synthgen.formats.images import pixels, taken_over, upright_size
from tests.formats.sources import picture


def encoded(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(buffer, kind, **({"exif": exif} if orientation != 1 else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_bytes_are_taken_over(kind: str, suffix: str, mode: str) -> None:
    data = encoded(picture(0).convert(mode), kind)
    assert taken_over(data, (80, 60), verify=True) == (data, suffix)
    assert pixels(data, (80, 60)).shape == (60, 80, 3)


def test_what_readers_see_differently_is_encoded_anew() -> None:
    for image, kind, suffix in (
        (picture(0).convert("CMYK"), "JPEG", "jpg"),
        (picture(0), "BMP", "png"),
        (picture(0), "TIFF", "png"),
        (picture(0).convert("P"), "GIF", "png"),
    ):
        data = encoded(image, kind)
        new, found = taken_over(data, (80, 60), verify=True)
        assert (new == data, found) == (False, suffix)
        with Image.open(io.BytesIO(new)) as again:
            assert again.mode == "RGB"
            difference = np.abs(np.asarray(again, float) - pixels(data, (80, 60)))
        assert difference.mean() < (
            12 if suffix == "jpg" else 1e-9
        )  # jpg: noise is what it keeps worst


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_picture_on_its_side_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = picture(0)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    data = encoded(upright.transpose(turn), "PNG", orientation)
    (tmp_path / "x.png").write_bytes(data)
    assert upright_size(tmp_path / "x.png") == (80, 60)
    np.testing.assert_array_equal(pixels(data, (80, 60)), np.asarray(upright))
    new, _ = taken_over(data, (80, 60), verify=True)
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_a_record_whose_size_is_that_of_the_stored_pixels() -> None:
    """Then boxes are in the stored picture: what says otherwise goes."""
    stored = picture(0)
    data = encoded(stored, "PNG", 6)
    np.testing.assert_array_equal(pixels(data, (80, 60)), np.asarray(stored))
    new, _ = taken_over(data, (80, 60), verify=True)
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))


def test_damaged_and_other_pictures_are_named(tmp_path: Path) -> None:
    good = encoded(picture(0), "JPEG")
    for data, size, message in (
        (good[:-300], (80, 60), "does not decode: image file is truncated"),
        (b"no picture", (80, 60), "does not decode: cannot identify image file"),
        (good, (60, 80), "the picture has 80 x 60 px, its entry says 60 x 80"),
        (
            encoded(Image.new("I;16", (8, 8)), "PNG"),
            (8, 8),
            "has mode I;16; save it with 8 bits a channel",
        ),
    ):
        with pytest.raises(BadEntryError, match=message):
            taken_over(data, size, verify=True)
        with pytest.raises(BadEntryError, match=message):
            pixels(data, size)
    with pytest.raises(BadEntryError, match="the picture is not there"):
        upright_size(tmp_path / "none.jpg")
