"""What every layout-conditioned pipeline has in common: its recipe, and what it hands back.

Each other module of this folder is one method: a `Spec` whose `method` names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from synthgen.errors import InputError
from synthgen.layouts.base import SamplerSpec
from synthgen.scenes.scene import Scene, SceneSpec
from synthgen.spec import SpecModel, load_implementation
from synthgen.yamlfile import Document


class ModelNotFoundError(InputError):
    """A checkpoint cannot be had; the message says its name, where it was looked for and what to do."""


class IncompatibleLayoutError(InputError):
    """A layout that this pipeline or checkpoint cannot paint; the message names the argument and the value."""


@dataclass(frozen=True)
class Painting:
    """A painted scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: COCO run-length encodings, one a box, where the pipeline knows them.
    """

    image: NDArray[np.uint8]
    masks: tuple[dict[str, Any], ...] | None = None


@dataclass(frozen=True)
class Numerics:
    """What pixels depend on besides the job: kept in the shard's marker.

    Attributes:
        batch_size: images painted together.
        chunk: windows that go through the network together.
        threads: CPU threads of a worker.
        device: "cpu" or "cuda".
        versions: of the packages that compute pixels.
        files: hashes of the model files and of the others that the job reads, as this worker found them.
    """

    batch_size: int = 4
    chunk: int = 32
    threads: int = 1
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)


class Painter(Protocol):
    """A loaded pipeline.

    It may have a method `use_chunk(chunk)`, to go on with another `Numerics.chunk` as if it had been
    loaded with that one. A painter without it is loaded anew where memory runs out.
    """

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        """Paint a batch: every scene with its own layout and its own seed."""


class MethodSpec(SpecModel):
    """A pipeline recipe. Specs import no torch: the implementation is imported by `load`.

    Attributes:
        PAINTER: import path of the painter, a class that takes the recipe, a `SceneSpec` and `Numerics`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    PAINTER: ClassVar[str]

    method: str

    @classmethod
    def read_document(cls, document: Document, name: str) -> Document | None:
        """Return the job that a file of another program stands for, with the places of its keys.

        Args:
            document: a mapping without the keys that every job has.
            name: the file's.

        Returns:
            None if it is no file that this method reads.
        """
        return None

    @property
    def uses_torch(self) -> bool:
        """Whether painting runs on torch, and so on a GPU where there is one."""
        return False

    @property
    def follows_words(self) -> bool:
        """Whether the picture follows any words of the scene's background: weather, light, season and style are such."""
        return True

    def fit_to_layouts(self, sampler: SamplerSpec) -> "MethodSpec":
        """Return the recipe with numbers for the keys that the layouts of a job decide."""
        return self

    def generation_canvas(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the canvas (width, height) in px on which images of a canvas are generated."""
        return canvas

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        """What stands against painting these layouts with this recipe, each as `key: reason`."""
        return []

    def doubts(self, sampler: SamplerSpec) -> list[str]:
        """What may make these layouts' pictures bad, though they can be painted, each as `key: reason`."""
        return []

    def fingerprint(self) -> dict[str, Any]:
        """What the pixels depend on, beyond the recipe's own keys: hashes of model files."""
        return {}

    def revision(self, sampler: SamplerSpec) -> int:
        """Return the number of what this recipe generates for such layouts; a change that has no key raises it."""
        return 1

    def scene_fingerprint(self, scene: SceneSpec) -> dict[str, Any]:
        """Return what pixels depend on besides that only some scenes use: hashes of files."""
        return {}

    def licence(self) -> str:
        """What the images may be used for, as far as this recipe decides it."""
        return "Apache-2.0"

    def load(self, scene: SceneSpec, numerics: Numerics) -> Painter:
        """Load what is needed to paint.

        Raises:
            ModelNotFoundError: the checkpoint cannot be reached.
        """
        painter: Painter = load_implementation(self.PAINTER)(self, scene, numerics)
        return painter
