"""The interface of layout-conditioned pipelines: their recipes, and the images that they return.

Every other module of this folder is one method: it defines a `Spec` whose `method` names it.
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
    """A checkpoint cannot be found or fetched.

    The message names the checkpoint, says where it was looked for, and what to do.
    """


class IncompatibleLayoutError(InputError):
    """A layout does not suit the pipeline or the checkpoint.

    The message names the argument and its value.
    """


@dataclass(frozen=True)
class Painting:
    """The generated image of one scene.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        masks: COCO run-length encodings, one for each box; None if the pipeline does not know them.
        parts: what the painter needs to generate single objects again; None if it cannot.
    """

    image: NDArray[np.uint8]
    masks: tuple[dict[str, Any], ...] | None = None
    parts: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Numerics:
    """Settings besides the job that pixels depend on. They are recorded in the shard's marker.

    Attributes:
        batch_size: number of images that are generated together.
        chunk: number of windows that go through the network together.
        threads: number of CPU threads of a worker.
        device: "cpu" or "cuda".
        dtype: number format of the networks, such as "bfloat16"; None if the method has none, and
            in the markers of versions that did not record it.
        versions: versions of the packages that compute pixels.
        files: hashes of the model files and of the other files that the job reads, as this worker
            read them.
        tiled: whether images larger than the autoencoder's own size are decoded in tiles; they
            always were in versions that did not record it.
        hardware: the processor or card; empty in the markers of versions that did not record it.
    """

    batch_size: int = 4
    chunk: int = 32
    threads: int = 1
    device: str = "cpu"
    dtype: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    tiled: bool = True
    hardware: str = ""


class Painter(Protocol):
    """A loaded pipeline.

    A painter may have a method `use_chunk(chunk)`, which changes `Numerics.chunk` as if the painter
    had been loaded with the new value. A painter without it is loaded again when memory runs out.
    With it, it may have a method `measure_chunk()`, which returns the chunk for the free memory of
    a GPU.
    Images are repaired with one of two methods: `inpaint_boxes` generates windows of a finished
    image again, and `regenerate_objects` single objects of an image that the painter still has in
    parts. A painter with a method `use_verifier(find_failed)` verifies objects while it generates
    them.
    """

    def __call__(
        self, scenes: Sequence[Scene], seeds: Sequence[np.random.SeedSequence]
    ) -> list[Painting]:
        """Generate a batch of images: each scene has its own layout and its own seed."""


class MethodSpec(SpecModel):
    """The recipe of a pipeline. Recipes do not import torch: `load` imports the implementation.

    Attributes:
        PAINTER: import path of the painter, a class that takes the recipe, a `SceneSpec` and a
            `Numerics`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    PAINTER: ClassVar[str]

    method: str

    @classmethod
    def read_document(cls, document: Document, name: str) -> Document | None:
        """Return the job that a file of another program stands for, with the places of its keys.

        Args:
            document: a mapping without the keys that every job has.
            name: name of the file.

        Returns:
            None if this method does not read such a file.
        """
        return None

    @property
    def uses_torch(self) -> bool:
        """Whether images are generated with torch, and so on a GPU where there is one."""
        return False

    def choose_dtype(self, device: str) -> str | None:
        """Choose the number format of the networks on a device; None if there are none."""
        return None

    def former_dtype(self, device: str) -> str | None:
        """Return the number format on a device where `Numerics.dtype` was not recorded."""
        return None

    @property
    def follows_background_prompt(self) -> bool:
        """Whether the image follows the background's prompt: weather, light, season and style."""
        return True

    def fit_to_layouts(self, sampler: SamplerSpec) -> "MethodSpec":
        """Return the recipe with numbers for the keys that depend on the layouts of a job."""
        return self

    def generation_canvas(self, canvas: tuple[int, int]) -> tuple[int, int]:
        """Return the size (width, height) in px at which images of a canvas are generated."""
        return canvas

    def check(self, sampler: SamplerSpec, scene: SceneSpec) -> list[str]:
        """Return why this recipe cannot generate these layouts, each reason as `key: reason`."""
        return []

    def find_warnings(self, sampler: SamplerSpec) -> list[str]:
        """Return what may make the images of these layouts bad, each warning as `key: reason`."""
        return []

    def fingerprint(self) -> dict[str, Any]:
        """Return what the pixels depend on beyond the recipe's own keys: hashes of model files."""
        return {}

    def method_revision(self, sampler: SamplerSpec) -> int:
        """Return the revision of this method's behaviour for such layouts.

        A change of the generated images that no key expresses increases it.
        """
        return 1

    def scene_fingerprint(self, scene: SceneSpec) -> dict[str, Any]:
        """Return hashes of files that pixels depend on and that only some scenes use."""
        return {}

    def licence(self) -> str:
        """Return what the images may be used for, as far as this recipe decides it."""
        return "Apache-2.0"

    def load(self, scene: SceneSpec, numerics: Numerics) -> Painter:
        """Load the painter.

        Raises:
            ModelNotFoundError: the checkpoint cannot be found or fetched.
        """
        painter: Painter = load_implementation(self.PAINTER)(self, scene, numerics)
        return painter
