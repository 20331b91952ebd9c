"""Image files: the modes that are read, and what Pillow raises for a damaged one."""

import struct

from PIL import Image

EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")  # every reader makes the same RGB of these
COLOURS = ("CMYK", "YCbCr", "LAB", "HSV")  # made RGB by us
DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)  # what pillow raises
