"""Where all randomness comes from: one numbered stream for each thing that is drawn.

What is drawn for sample `index` is a function of the seed, the index, the stream and the attempt alone.
So it stays the same on any number of workers, and two streams never yield the same numbers.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What is drawn. A number is part of the bytes of every dataset: it is never changed or reused."""

    LAYOUT = 0
    SCENE = 1
    NOISE = 2
    REPAIR = 3
    ATMOSPHERE = 4
    CAMERA = 5
    TRAINING_STEP = 6
    """What a training step draws; index: the step, attempt: the rank of the process."""
    TRAINING_REHEARSAL = 7
    """The random boxes of a rehearsal; index: the step, attempt: the rank of the process."""
    TRAINING_CROP = 8
    """Crop and flip of an image of a dataset; index: its number in the sequence."""
    TRAINING_ORDER = 9
    """The order of the images; index: the epoch."""
    PASTED_SCENE = 10
    """A scene pasted on the fly; index: its number, attempt: which part of it (see `PastedScenes`)."""
    CONCEPT_SCENE = 11
    """A scene of new classes; index: its number."""
    PRIOR_SCENE = 12
    """A scene for prior preservation; index: its number, attempt: the number of its class."""
    PRIOR_NOISE = 13
    """The noise from which such a scene is generated; index: its number among all of them."""
    HELD_OUT = 14
    """Windows of held-out scenes to measure on; index: the number of the batch."""
    SHEET = 15
    """The layouts of a sample sheet; index: the number of the image."""


def seed_sequence(
    seed: int, index: int, stream: Stream, attempt: int = 0
) -> np.random.SeedSequence:
    """Return the randomness of one sample in one stream.

    Args:
        seed: of the job, at least 0.
        index: of the sample (or whatever the stream counts), from 0 to 2**32 - 1.
        attempt: number of the attempt (or whatever the stream says), from 0 to 2**32 - 1.
    """
    return np.random.SeedSequence(seed, spawn_key=(index, int(stream), attempt))


def child_sequence(parent: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Return the randomness of one part of what a sequence is for; it meets neither its parent nor another child."""
    return np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, number))


def torch_seed(sequence: np.random.SeedSequence) -> int:
    """Return a seed for torch's generators, from 0 to 2**63 - 1."""
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
