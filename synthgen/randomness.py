"""The source of all randomness: one numbered stream for each use of random numbers.

The random numbers of sample `index` depend only on the seed, the index, the stream and the attempt.
They are therefore the same on any number of workers, and no two streams share numbers.
"""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The uses of random numbers.

    The numbers determine the bytes of every dataset: never change or reuse one.
    """

    LAYOUT = 0
    SCENE = 1
    NOISE = 2
    REPAIR = 3
    ATMOSPHERE = 4
    CAMERA = 5
    TRAINING_STEP = 6
    """The random numbers of a training step; index: the step, attempt: the rank of the process."""
    TRAINING_REHEARSAL = 7
    """The random boxes of a rehearsal; index: the step, attempt: the rank of the process."""
    TRAINING_CROP = 8
    """The crop and flip of an image of a dataset; index: its number in the sequence."""
    TRAINING_ORDER = 9
    """The order of the images; index: the epoch."""
    PASTED_SCENE = 10
    """A scene pasted on the fly; index: its number, attempt: the use (see `PastedScenes`)."""
    CONCEPT_SCENE = 11
    """A scene of new classes; index: its number."""
    PRIOR_SCENE = 12
    """A scene for prior preservation; index: its number, attempt: the number of its class."""
    PRIOR_NOISE = 13
    """The initial noise of a scene for prior preservation; index: its number among all of them."""
    HELD_OUT = 14
    """The windows of held-out scenes to measure on; index: the number of the batch."""
    SHEET = 15
    """The layouts of a sample sheet; index: the number of the image."""


def seed_sequence(
    seed: int, index: int, stream: Stream, attempt: int = 0
) -> np.random.SeedSequence:
    """Return the seed sequence of one sample in one stream.

    Args:
        seed: the seed of the job, at least 0.
        index: the index of the sample (or of what the stream counts), from 0 to 2**32 - 1.
        attempt: the number of the attempt (or what the stream documents), from 0 to 2**32 - 1.
    """
    return np.random.SeedSequence(seed, spawn_key=(index, int(stream), attempt))


def spawn_sequence(parent: np.random.SeedSequence, number: int) -> np.random.SeedSequence:
    """Return an independent sequence for one numbered step of what a sequence is used for.

    It shares no random numbers with its parent or with another child.
    """
    return np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, number))


def make_torch_seed(sequence: np.random.SeedSequence) -> int:
    """Return a seed for a generator of torch, from 0 to 2**63 - 1."""
    return int(sequence.generate_state(1, np.uint64)[0] >> 1)
