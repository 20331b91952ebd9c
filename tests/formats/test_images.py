"""Images of records: which bytes are kept, which are encoded again, and which are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from synthgen.formats.entries import BadEntryError
from synthgen.formats.images import convert_image, decode_pixels, read_upright_size
from tests.formats.sources import make_image


def encode(image: Image.Image, kind: str, orientation: int = 1) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    if orientation == 1:
        image.save(buffer, kind)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_common_formats_keep_their_bytes(kind: str, suffix: str, mode: str) -> None:
    data = encode(make_image(0).convert(mode), kind)
    assert convert_image(data, (80, 60), verify=True) == (data, suffix)
    assert decode_pixels(data, (80, 60)).shape == (60, 80, 3)


def test_other_formats_are_encoded_again() -> None:
    for image, kind, suffix in (
        (make_image(0).convert("CMYK"), "JPEG", "jpg"),
        (make_image(0), "BMP", "png"),
        (make_image(0), "TIFF", "png"),
        (make_image(0).convert("P"), "GIF", "png"),
    ):
        data = encode(image, kind)
        new, new_suffix = convert_image(data, (80, 60), verify=True)
        assert new != data
        assert new_suffix == suffix
        with Image.open(io.BytesIO(new)) as again:
            assert again.mode == "RGB"
            difference = np.abs(np.asarray(again, float) - decode_pixels(data, (80, 60)))
        limit = 12 if suffix == "jpg" else 1e-9  # jpg keeps noise badly
        assert difference.mean() < limit


@pytest.mark.parametrize("orientation", [3, 6])
def test_a_rotated_image_is_turned_upright(orientation: int, tmp_path: Path) -> None:
    upright = make_image(0)
    turn = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}[orientation]
    data = encode(upright.transpose(turn), "PNG", orientation)
    (tmp_path / "x.png").write_bytes(data)
    assert read_upright_size(tmp_path / "x.png") == (80, 60)
    np.testing.assert_array_equal(decode_pixels(data, (80, 60)), np.asarray(upright))
    new, _ = convert_image(data, (80, 60), verify=True)
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), np.asarray(upright))


def test_an_image_is_not_turned_if_the_record_has_the_stored_size() -> None:
    """Its boxes refer to the stored pixels, so that the EXIF orientation is removed."""
    stored = make_image(0)
    data = encode(stored, "PNG", 6)
    np.testing.assert_array_equal(decode_pixels(data, (80, 60)), np.asarray(stored))
    new, _ = convert_image(data, (80, 60), verify=True)
    with Image.open(io.BytesIO(new)) as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), np.asarray(stored))


def test_damaged_and_other_images_are_refused(tmp_path: Path) -> None:
    good = encode(make_image(0), "JPEG")
    for data, size, message in (
        (good[:-300], (80, 60), "does not decode: image file is truncated"),
        (b"no image", (80, 60), "does not decode: cannot identify image file"),
        (good, (60, 80), "the image has 80 x 60 px, its entry says 60 x 80"),
        (
            encode(Image.new("I;16", (8, 8)), "PNG"),
            (8, 8),
            "has mode I;16; save it with 8 bits a channel",
        ),
    ):
        with pytest.raises(BadEntryError, match=message):
            convert_image(data, size, verify=True)
        with pytest.raises(BadEntryError, match=message):
            decode_pixels(data, size)
    with pytest.raises(BadEntryError, match="the image is not there"):
        read_upright_size(tmp_path / "none.jpg")
