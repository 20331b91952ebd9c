"""Image files: the modes that are read, and what Pillow raises for a damaged file."""

import struct

from PIL import Image

EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pillow's modes that every reader converts to the same RGB values."""
OTHER_COLOUR_MODES = ("CMYK", "YCbCr", "LAB", "HSV")
"""Pillow's modes that readers convert differently: synthgen converts them to RGB."""
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""The exceptions that Pillow raises for a damaged image file."""
