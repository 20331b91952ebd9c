"""The sizes that a checkpoint works with, which its configurations state."""

import json
from pathlib import Path
from typing import Any

SIZES_FILE = "synthgen.json"  # lists the sizes that a checkpoint was trained for, in its folder
# Longer sides of the objects that a checkpoint generates well, as shares of its native window.
LEAST_OBJECT_SHARE = 0.4
MOST_OBJECT_SHARE = 0.8


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Return the config.json of a part of a checkpoint."""
    config: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
    return config


def compute_vae_factor(config: dict[str, Any]) -> int:
    """Return the px per latent cell: 2 to the number of the autoencoder's halvings."""
    channels = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return int(2 ** (len(channels) - 1))


def read_native_windows(folder: Path) -> tuple[int, int]:
    """Return the least and largest side in px of the windows that a checkpoint was trained at."""
    sizes = _read_sizes(folder)
    if "window_sizes" in sizes:
        least, most = sizes["window_sizes"]
        return int(least), int(most)
    cells = int(read_config(folder, "unet").get("sample_size") or 64)
    side = cells * compute_vae_factor(read_config(folder, "vae"))
    return side, side


def read_object_sizes(folder: Path) -> tuple[float, float]:
    """Return the limits in px of the longer sides of objects that a checkpoint generates well."""
    sizes = _read_sizes(folder)
    if "object_sizes" in sizes:
        least, most = sizes["object_sizes"]
        return float(least), float(most)
    side, _ = read_native_windows(folder)
    return LEAST_OBJECT_SHARE * side, MOST_OBJECT_SHARE * side


def _read_sizes(folder: Path) -> dict[str, Any]:
    """Return the sizes in a checkpoint's `synthgen.json`; {} if it has no such file."""
    file = folder / SIZES_FILE
    if not file.is_file():
        return {}
    sizes: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return sizes


def compute_unet_multiple(config: dict[str, Any]) -> int:
    """Return the multiple of window sides in cells: 2 to the number of the UNet's halvings."""
    return int(2 ** (len(config["block_out_channels"]) - 1))
