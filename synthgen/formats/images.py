"""The pictures of records: decoded whole, held against what the record says, and taken over byte by byte where that can be.

A picture whose EXIF orientation says that it lies on its side is turned upright, as every viewer and OpenCV show it, unless the
record's width and height are those of the pixels as they are stored: then its boxes are, too.
"""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from synthgen.formats.entries import BadEntryError, Entry
from synthgen.images import COLOURS, DAMAGED, EIGHT_BITS

FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
NOT_READ = (".heic", ".heif")  # they are found, so that they are named and not passed over
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
    *NOT_READ,
)
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
HEAD = 12  # bytes of a file that tell HEIC
APPLE_DOUBLE = "._"  # macOS writes ._NAME beside each file on a file system of others
ON_ITS_SIDE = (5, 6, 7, 8)
QUALITY = 95  # of what must be encoded anew as jpg


def is_image_name(path: Path) -> bool:
    """Whether a file is an image by its name: of any case of suffix, and none that macOS left beside one."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(APPLE_DOUBLE)


def image_files(folder: Path, deep: bool = False) -> list[Path]:
    """The image files of a folder, sorted.

    Args:
        deep: also those of the folders in it.
    """
    return sorted(
        path for path in (folder.rglob("*") if deep else folder.glob("*")) if is_image_name(path)
    )


def read_bytes(path: Path | None, key: str = "file_name") -> bytes:
    """The bytes of a record's picture.

    Raises:
        BadEntryError: it is not there.
    """
    if path is None:
        raise BadEntryError(f"{key}: missing; the name of the picture's file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadEntryError(f"{path}: the picture cannot be read: {error.strerror}") from None


def image_bytes(entry: Entry) -> bytes:
    """The bytes of an entry's image: those of its file, or those that its source holds.

    Raises:
        BadEntryError: its file is not there.
    """
    return read_bytes(entry.picture) if entry.embedded is None else entry.embedded


def upright_size(source: Path | bytes) -> tuple[int, int]:
    """Width and height of a picture as it is seen, read from its head alone.

    Args:
        source: its file, or the bytes of it.

    Raises:
        BadEntryError: it is not there, or no picture.
    """
    named = f"{source}: " if isinstance(source, Path) else ""
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            return image.size[::-1] if _orientation(image) in ON_ITS_SIDE else image.size
    except FileNotFoundError:
        raise BadEntryError(f"{named}the picture is not there") from None
    except UnidentifiedImageError as error:
        raise BadEntryError(f"{named}{undecoded(error, _head(source))}") from None
    except DAMAGED as error:
        raise BadEntryError(f"{named}not a picture: {error}") from None


def _head(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source[:HEAD]
    with source.open("rb") as file:
        return file.read(HEAD)


def undecoded(error: Exception, data: bytes) -> str:
    """Why an image does not decode.

    Args:
        error: what pillow raised.
        data: the file, or its first HEAD bytes.
    """
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        return "HEIC is not read: convert it to JPEG or PNG"
    if not data:
        return "the picture does not decode: the file is empty"
    if isinstance(error, UnidentifiedImageError):  # its text names an object in memory
        return (
            f"the picture does not decode: cannot identify image file: it begins with {data[:12]!r}"
        )
    return f"the picture does not decode: {error}"


def pixels(data: bytes, size: tuple[int, int], path: Path | None = None) -> NDArray[np.uint8]:
    """A record's picture as (H, W, 3) uint8.

    Args:
        path: its file, for messages.

    Raises:
        BadEntryError: it does not decode, or is not of that size (width, height).
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(_as_recorded(image, size).convert("RGB"))
    except BadEntryError:
        raise
    except DAMAGED as error:
        raise BadEntryError(f"{path}: " * (path is not None) + undecoded(error, data)) from None


def taken_over(
    data: bytes, size: tuple[int, int], verify: bool, path: Path | None = None
) -> tuple[bytes, str]:
    """What a dataset holds of a record's picture, and its format: jpg, png or webp.

    Its own bytes, if every reader sees in them what the record means; else encoded anew: jpg of quality 95 where it was one, png
    where it was something else.

    Args:
        verify: decode it whole.
        path: its file, for messages.

    Raises:
        BadEntryError: it does not decode, or is not of that size (width, height).
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            recorded, kind = _as_recorded(image, size), FORMATS.get(str(image.format))
            if recorded is image and kind and image.mode in EIGHT_BITS and _orientation(image) == 1:
                if verify:
                    image.load()
                return data, kind
            kind = "jpg" if kind == "jpg" else "png"
            buffer = io.BytesIO()
            recorded.convert("RGB").save(
                buffer, "JPEG" if kind == "jpg" else "PNG", quality=QUALITY, subsampling=0, exif=b""
            )
            return buffer.getvalue(), kind
    except BadEntryError:
        raise
    except DAMAGED as error:
        raise BadEntryError(f"{path}: " * (path is not None) + undecoded(error, data)) from None


def _as_recorded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture whose pixels the record's boxes are in: upright, or as it is stored."""
    orientation, stored = _orientation(image), image.size
    upright = stored[::-1] if orientation in ON_ITS_SIDE else stored
    if size not in (upright, stored):
        raise BadEntryError(
            f"the picture has {upright[0]} x {upright[1]} px, its entry says {size[0]} x {size[1]}"
        )
    if image.mode not in EIGHT_BITS + COLOURS:
        raise BadEntryError(f"the picture has mode {image.mode}; save it with 8 bits a channel")
    return ImageOps.exif_transpose(image) if orientation != 1 and size == upright else image


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return value if value in range(1, 9) else 1
