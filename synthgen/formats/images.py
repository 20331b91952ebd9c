"""Images of records: decoding, checking against the record, and conversion for a dataset.

An image whose EXIF orientation rotates it is turned upright, as viewers and OpenCV show it. It is
not turned if width and height of its record are those of the stored pixels, because then its boxes
refer to the stored pixels.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from synthgen.formats.entries import BadEntryError, Entry
from synthgen.images import DECODE_ERRORS, EIGHT_BIT_MODES, OTHER_COLOUR_MODES

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
UNREADABLE_SUFFIXES = (".heic", ".heif")  # found nevertheless, so that an error names the file
SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
    ".avif",
    *UNREADABLE_SUFFIXES,
)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD_BYTES = 12  # the first bytes of a file, which identify HEIC
APPLE_DOUBLE = "._"  # macOS writes ._NAME beside each file on foreign file systems
ROTATED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
QUALITY = 95  # quality of images that are encoded again as jpg


def is_image_name(path: Path) -> bool:
    """Return whether a file is an image by its name, in any case of its suffix."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(APPLE_DOUBLE)


def find_images(folder: Path, deep: bool = False) -> list[Path]:
    """Return the image files of a folder, sorted.

    Args:
        deep: also search its subfolders.
    """
    paths = folder.rglob("*") if deep else folder.glob("*")
    return sorted(path for path in paths if is_image_name(path))


def read_bytes(path: Path | None, key: str = "file_name") -> bytes:
    """Return the content of an image file.

    Raises:
        BadEntryError: there is no such file.
    """
    if path is None:
        raise BadEntryError(f"{key}: missing; the name of the image file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadEntryError(f"{path}: the image cannot be read: {error.strerror}") from None


def read_image(entry: Entry) -> bytes:
    """Return the bytes of an entry's image, from its source or from its file.

    Raises:
        BadEntryError: there is no such file.
    """
    return read_bytes(entry.image_path) if entry.embedded is None else entry.embedded


def read_upright_size(source: Path | bytes) -> tuple[int, int]:
    """Return width and height of an image after the EXIF rotation, without decoding it.

    Args:
        source: the file, or its bytes.

    Raises:
        BadEntryError: there is no such file, or it is not an image.
    """
    prefix = f"{source}: " if isinstance(source, Path) else ""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return _measure_upright(image)
    except FileNotFoundError:
        raise BadEntryError(f"{prefix}the image is not there") from None
    except UnidentifiedImageError as error:
        raise BadEntryError(f"{prefix}{explain_undecoded(error, _read_head(source))}") from None
    except DECODE_ERRORS as error:
        raise BadEntryError(f"{prefix}not an image: {error}") from None


def _read_head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD_BYTES]
    with source.open("rb") as file:
        return file.read(HEAD_BYTES)


def explain_undecoded(error: Exception, data: bytes) -> str:
    """Return a message that says why an image cannot be decoded.

    Args:
        error: the error that pillow raised.
        data: the file, or its first HEAD_BYTES bytes.
    """
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "HEIC is not read: convert it to JPEG or PNG"
    if not data:
        return "the image does not decode: the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its text contains an address in memory
        start = f"it begins with {data[:HEAD_BYTES]!r}"
        return f"the image does not decode: cannot identify image file: {start}"
    return f"the image does not decode: {error}"


def decode_pixels(
    data: bytes, size: tuple[int, int], path: Path | None = None
) -> NDArray[np.uint8]:
    """Return the image of a record as (H, W, 3) uint8.

    Args:
        size: width and height in px that the record states.
        path: the file, for messages.

    Raises:
        BadEntryError: the image does not decode, or has another size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(_orient_as_recorded(image, size).convert("RGB"))
    except BadEntryError:
        raise
    except DECODE_ERRORS as error:
        raise _make_decoding_error(error, data, path) from None


def convert_image(
    data: bytes, size: tuple[int, int], verify: bool, path: Path | None = None
) -> tuple[bytes, str]:
    """Return the bytes of an image as a dataset stores it, and their format: jpg, png or webp.

    The bytes are unchanged if every program decodes them to the pixels that the record refers to.
    Otherwise the image is encoded again: a jpg as jpg of quality 95, everything else as png.

    Args:
        size: width and height in px that the record states.
        verify: decode the whole image.
        path: the file, for messages.

    Raises:
        BadEntryError: the image does not decode, or has another size.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            oriented = _orient_as_recorded(image, size)
            kind = FORMATS.get(str(image.format))
            is_plain = (
                oriented is image
                and image.mode in EIGHT_BIT_MODES
                and _read_orientation(image) == 1
            )
            if is_plain and kind:
                if verify:
                    image.load()
                return data, kind
            kind = "jpg" if kind == "jpg" else "png"
            encoder = "JPEG" if kind == "jpg" else "PNG"
            buffer = io.BytesIO()
            plain = oriented.convert("RGB")
            plain.save(buffer, encoder, quality=QUALITY, subsampling=0, exif=b"")
            return buffer.getvalue(), kind
    except BadEntryError:
        raise
    except DECODE_ERRORS as error:
        raise _make_decoding_error(error, data, path) from None


def _make_decoding_error(error: Exception, data: bytes, path: Path | None) -> BadEntryError:
    prefix = "" if path is None else f"{path}: "
    return BadEntryError(prefix + explain_undecoded(error, data))


def _orient_as_recorded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image that the boxes of the record refer to: turned upright, or as stored.

    Raises:
        BadEntryError: neither has the size that the record states, or the pixels have more than
            8 bits.
    """
    stored = image.size
    upright = _measure_upright(image)
    if size not in (upright, stored):
        raise BadEntryError(
            f"the image has {upright[0]} x {upright[1]} px, its entry says {size[0]} x {size[1]}"
        )
    if image.mode not in EIGHT_BIT_MODES + OTHER_COLOUR_MODES:
        raise BadEntryError(f"the image has mode {image.mode}; save it with 8 bits a channel")
    if _read_orientation(image) == 1 or size != upright:
        return image
    return ImageOps.exif_transpose(image)


def _measure_upright(image: Image.Image) -> tuple[int, int]:
    """Return width and height in px of an image after its EXIF rotation."""
    width, height = image.size
    return (height, width) if _read_orientation(image) in ROTATED else (width, height)


def _read_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1
