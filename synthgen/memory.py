"""Memory that runs out."""

import gc
import sys


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch reports that the memory of a GPU or of this machine is exhausted."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Return unused memory to the operating system, or to the GPU if torch caches it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
