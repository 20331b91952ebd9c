"""How many windows go through the network together on a GPU, by its free memory."""

from typing import Any

import torch

MOST_WINDOWS = 256  # more are not faster
USED_SHARE = 0.7  # of the free memory; the rest is for latents, merged predictions and fragments


def choose_chunk(free_bytes: int, window_bytes: int) -> int:
    """Return how many windows fit, a power of two, so that equal cards choose the same number.

    Args:
        free_bytes: free memory.
        window_bytes: memory that one window needs while it goes through the network.
    """
    count = int(USED_SHARE * free_bytes / max(1, window_bytes))
    return 1 << (min(max(1, count), MOST_WINDOWS).bit_length() - 1)


@torch.no_grad()
def measure_chunk(pipeline: Any) -> int:
    """Return the chunk for a pipeline on a GPU, from passes of one and of three windows.

    Args:
        pipeline: a `LatentPipeline`.
    """
    side = int(pipeline.unet.config.sample_size)
    shape = (pipeline.unet.config.in_channels, side, side)
    table = pipeline.text_conditions([""], 1.0)
    peaks = []
    for count in (1, 3):
        windows = torch.zeros(count, *shape, device=pipeline._execution_device)
        rows = torch.zeros(count, dtype=torch.long, device=windows.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        timestep = torch.tensor(500, device=windows.device)
        pipeline.predict(timestep, windows, {name: table[name][rows] for name in table})
        peaks.append(torch.cuda.max_memory_allocated())
    torch.cuda.empty_cache()
    free_bytes, _ = torch.cuda.mem_get_info()
    return choose_chunk(free_bytes, (peaks[1] - peaks[0]) // 2)
