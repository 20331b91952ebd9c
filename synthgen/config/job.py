"""What a job says: one frozen, validated `Job`."""

from os.path import expanduser
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator

from synthgen.dataset.categories import category_ids
from synthgen.errors import InputError
from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import MethodSpec
from synthgen.scenes.scene import SceneSpec
from synthgen.spec import SpecModel, flat
from synthgen.speech import Spoken
from synthgen.storage.location import check_url, is_url
from synthgen.verification.base import VerifierSpec

SECTIONS = {
    "layout": "sampler",
    "pipeline": "method",
    "verify": "verifier",
}  # each section's key that names its spec


class OutputSpec(SpecModel):
    """Where the dataset goes and how its pictures are stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="output folder, or a URL: s3://, gs://, hdfs://")
    shared: bool = Field(
        False, description="all nodes of the cluster see the folder under this name"
    )
    shard_size: int = Field(1000, ge=1, le=100_000, description="images a shard")
    image_format: Literal["jpg", "png", "webp"] = "jpg"
    quality: int = Field(95, ge=1, le=100, description="of jpg and webp")
    subsampling: Literal["4:4:4", "4:2:0"] = Field(
        "4:4:4",
        description="chroma of jpg; 4:2:0 is smaller, and blurs the colours of small objects (webp has 4:2:0 alone)",
    )

    @field_validator("path")
    @classmethod
    def without_keys(cls, value: str) -> str:
        if is_url(value):
            try:
                check_url(value)
            except InputError as error:
                raise ValueError(str(error)) from None
            return value
        return expanduser(value)  # a shell leaves the ~ of key=~/folder as it is


class Job(SpecModel):
    """What to make: one layout recipe, one pipeline recipe, how many, where to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1]
    name: str = Field(pattern=r"^[\w.-]+$")
    images: int = Field(ge=1, lt=10**9, description="how many images")
    seed: int = Field(0, ge=0, lt=2**63)
    layout: SerializeAsAny[SamplerSpec]
    scene: SceneSpec = SceneSpec()
    pipeline: SerializeAsAny[MethodSpec]
    output: OutputSpec
    workers: Annotated[int, Field(ge=0)] | tuple[int, int] | None = Field(
        None,
        description="how many, or [least, most]; 0: in this process; null: as many as the machine has room for",
    )
    batch_size: int = Field(4, ge=1, description="images painted together")
    chunk: int = Field(
        32, ge=1, description="windows that go through the network together; of large ones fewer"
    )
    threads: int = Field(1, ge=1, description="CPU threads of a worker")
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="GPUs a worker takes; null: 1 where the method uses one and there is one",
    )
    stall_timeout: float | None = Field(
        600, gt=0, description="seconds without progress until a worker is replaced; null: never"
    )
    max_shard_attempts: int = Field(
        3, ge=1, description="failures until a shard is given up, for this run"
    )
    max_attempts: int = Field(
        3, ge=1, description="times that an image is painted before on_reject says what happens"
    )
    on_reject: Literal["keep", "fail"] = "keep"
    verify: SerializeAsAny[VerifierSpec] | None = Field(
        None, description="look at every box; null: do not"
    )
    categories: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="ids of names that COCO lacks"
    )
    spoken: Spoken | None = Field(
        None, description="what was said, where parts of the job were spoken: a record"
    )
    _given: frozenset[str] = PrivateAttr(frozenset())

    @property
    def given(self) -> frozenset[str]:
        """Dotted keys that its owner set: not those that a shipped job or recipe, or a default, decides."""
        return self._given

    @field_validator("workers")
    @classmethod
    def least_first(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(value, tuple) and not 1 <= value[0] <= value[1]:
            raise ValueError(
                f"[{value[0]}, {value[1]}] must be [least, most] with 1 <= least <= most"
            )
        return value

    @field_validator("pipeline", mode="after")
    @classmethod
    def fit_pipeline(cls, value: MethodSpec, info: ValidationInfo) -> MethodSpec:
        """Settle what the layouts decide, such as the scale `native`, which is a number from here on."""
        layout = info.data.get("layout")
        return value if layout is None else value.fit_to_layouts(layout)

    @property
    def shards(self) -> int:
        return -(-self.images // self.output.shard_size)

    def shard_count(self, shard: int) -> int:
        """How many images shard number `shard` holds."""
        return min(self.output.shard_size, self.images - shard * self.output.shard_size)

    def ids(self) -> dict[str, int]:
        """Category ids of the names in the layout."""
        return category_ids(
            (name for name, labelled in self.layout.names().items() if labelled), self.categories
        )

    def resolved(self) -> dict[str, Any]:
        """The job as plain data, every default written out."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> dict[str, Any]:
        """All that the samples depend on, flat: dotted key to value. How many, where to and how fast are not in it."""
        data = self.resolved()
        output = {k: v for k, v in data["output"].items() if k not in ("path", "shared")}
        parts = {
            k: data[k] for k in ("seed", "layout", "scene", "pipeline", "categories", "verify")
        }
        return {**flat(parts), **flat({"output": output}), **self.files(), **self.revisions()}

    def revisions(self) -> dict[str, int]:
        """Return how often what a job like this generates or verifies has changed without a key, from 2 on.

        A dataset that was begun with another revision is not finished with this one.
        """
        found = {"pipeline.revision": self.pipeline.revision(self.layout)}
        if self.verify is not None:
            found["verify.revision"] = self.verify.revision
        return {key: number for key, number in found.items() if number > 1}

    def files(self) -> dict[str, Any]:
        """Hash the files that the samples depend on, flat: of the layout, scene, pipeline and verifier."""
        found = {
            "layout": self.layout.fingerprint(),
            "scene": self.scene.fingerprint(),
            "pipeline": {
                **self.pipeline.fingerprint(),
                **self.pipeline.scene_fingerprint(self.scene),
            },
            "verify": {} if self.verify is None else self.verify.fingerprint(),
        }
        return flat(found)
