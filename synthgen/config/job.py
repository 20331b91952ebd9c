"""The keys of a job: a frozen, validated `Job`."""

from os.path import expanduser
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, SerializeAsAny, ValidationInfo, field_validator

from synthgen.dataset.categories import find_category_ids
from synthgen.errors import InputError
from synthgen.layouts.base import SamplerSpec
from synthgen.pipelines.base import MethodSpec
from synthgen.scenes.scene import SceneSpec
from synthgen.spec import SpecModel, flatten
from synthgen.speech import Spoken
from synthgen.storage.location import check_url, is_url
from synthgen.verification.base import VerifierSpec

FIRST_CHUNK = 32  # windows, where `chunk: auto` has not measured the memory
SECTIONS = {"layout": "sampler", "pipeline": "method", "verify": "verifier"}
"""The sections of a job that have specs of their own, and the key that names the spec."""


class OutputSpec(SpecModel):
    """The output folder of the dataset, and the format of its images."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, description="Output folder, or a URL: s3://, gs:// or hdfs://.")
    shared: bool = Field(
        False,
        description="Whether all nodes of the cluster can access the folder by this path.",
    )
    shard_size: int = Field(1000, ge=1, le=100_000, description="Number of images in each shard.")
    image_format: Literal["jpg", "png", "webp"] = Field("jpg", description="Format of the images.")
    quality: int = Field(95, ge=1, le=100, description="Quality of jpg and webp images.")
    subsampling: Literal["4:4:4", "4:2:0"] = Field(
        "4:4:4",
        description="Chroma subsampling of jpg images; 4:2:0 makes smaller files and blurs the "
        "colours of small objects. webp always uses 4:2:0.",
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
        return expanduser(value)  # a shell does not expand the ~ of key=~/folder


class Job(SpecModel):
    """A dataset to generate: its layouts, its scene, its pipeline, its size and its output.

    Examples:
        >>> job = load_job("100dogs", ["layout.objects={dog: 3}"])
        >>> layout = job.layout.sample(np.random.default_rng(0))
        >>> layout.categories
        ('dog', 'dog', 'dog')
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = Field(description="Version of the job format.")
    name: str = Field(
        pattern=r"^[\w.-]+$", description="Name of the job: letters, digits, _, . and -."
    )
    images: int = Field(ge=1, lt=10**9, description="Number of images.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of all random numbers.")
    layout: SerializeAsAny[SamplerSpec] = Field(
        description="Layout recipe: its name, or its keys with the sampler."
    )
    scene: SceneSpec = Field(
        SceneSpec(), description="Prompts, weather, light and camera of the images."
    )
    pipeline: SerializeAsAny[MethodSpec] = Field(
        description="Pipeline recipe: its name, or its keys with the method."
    )
    output: OutputSpec = Field(description="Output folder and format of the images.")
    workers: Annotated[int, Field(ge=0)] | tuple[int, int] | None = Field(
        None,
        description="Number of workers, or [least, most]; 0: the job runs in this process; null: "
        "as many as the machine has room for.",
    )
    batch_size: int = Field(4, ge=1, description="Number of images generated together.")
    chunk: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Number of windows in one pass through the network, if they have the size that "
        "the checkpoint was trained at; fewer of larger windows, more of smaller ones. auto: 32 on "
        "a CPU; on a GPU as many as its free memory has room for.",
    )
    threads: int = Field(1, ge=1, description="Number of CPU threads of each worker.")
    gpus: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Number of GPUs of each worker; null: 1 if the method uses a GPU and there "
        "is one, otherwise 0.",
    )
    numerics: Literal["device", "strict"] = Field(
        "device",
        description="Whether different processors or cards may generate one dataset. They can "
        "give slightly different pixels; device: yes, the marker of a shard names its own; strict: "
        "no, the run stops.",
    )
    stall_timeout: float | None = Field(
        600,
        gt=0,
        description="Seconds without progress after which a worker is replaced; null: never.",
    )
    max_shard_attempts: int = Field(
        3, ge=1, description="Number of attempts after which a shard fails for this run."
    )
    max_attempts: int = Field(
        3, ge=1, description="Number of attempts for an image before `on_reject` applies."
    )
    on_reject: Literal["keep", "fail"] = Field(
        "keep",
        description="What happens to an image that fails verification in every attempt; keep: "
        "the image stays in the dataset; fail: its shard fails.",
    )
    verify: SerializeAsAny[VerifierSpec] | None = Field(
        None, description="Verifier of the boxes: its name, or its keys; null: no verification."
    )
    categories: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="Ids of categories that COCO does not have: {name: id}."
    )
    spoken: Spoken | None = Field(
        None, description="Record of the spoken prompt that changed the job; null: there was none."
    )
    _given: frozenset[str] = PrivateAttr(frozenset())

    @property
    def user_keys(self) -> frozenset[str]:
        """The dotted keys that the user set, not a shipped job, a shipped recipe or a default."""
        return self._given

    @field_validator("workers")
    @classmethod
    def least_first(cls, value: int | tuple[int, int] | None) -> int | tuple[int, int] | None:
        if isinstance(value, tuple):
            least, most = value
            if not 1 <= least <= most:
                raise ValueError(f"[{least}, {most}] must be [least, most] with 1 <= least <= most")
        return value

    @field_validator("pipeline", mode="after")
    @classmethod
    def fit_pipeline(cls, value: MethodSpec, info: ValidationInfo) -> MethodSpec:
        """Return the pipeline with numbers for the keys that layouts decide (`scale: native`)."""
        layout = info.data.get("layout")
        return value if layout is None else value.fit_to_layouts(layout)

    @property
    def first_chunk(self) -> int:
        """The chunk with which a worker begins, before it has measured its memory."""
        return FIRST_CHUNK if self.chunk == "auto" else self.chunk

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.images // self.output.shard_size)

    def images_in_shard(self, shard: int) -> int:
        """Return the number of images in a shard."""
        return min(self.output.shard_size, self.images - shard * self.output.shard_size)

    def ids(self) -> dict[str, int]:
        """Return the category id of each labelled category of the layout.

        Raises:
            ValueError: a category has no id, or two categories have the same one.
        """
        names = [name for name, labelled in self.layout.names().items() if labelled]
        return find_category_ids(names, self.categories)

    def to_dict(self) -> dict[str, Any]:
        """Return the job as plain data, with all defaults."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> dict[str, Any]:
        """Return everything that the samples depend on, as {dotted key: value}.

        The number of images, the output path and keys that affect only the speed are not included.
        """
        data = self.to_dict()
        sections = ("seed", "layout", "scene", "pipeline", "categories", "verify")
        parts = {section: data[section] for section in sections}
        output = dict(data["output"])
        del output["path"], output["shared"]
        parts["output"] = output
        return {**flatten(parts), **self.files(), **self.revisions()}

    def revisions(self) -> dict[str, int]:
        """Return the revisions of the pipeline and the verifier that are greater than 1.

        A revision counts the changes of what the same keys generate or verify. A dataset that was
        started with one revision is not continued with another.
        """
        revisions = {"pipeline.method_revision": self.pipeline.method_revision(self.layout)}
        if self.verify is not None:
            revisions["verify.revision"] = self.verify.revision
        return {key: revision for key, revision in revisions.items() if revision > 1}

    def files(self) -> dict[str, Any]:
        """Return the hashes of the files that the samples depend on, as {dotted key: hash}."""
        pipeline = {**self.pipeline.fingerprint(), **self.pipeline.scene_fingerprint(self.scene)}
        hashes = {
            "layout": self.layout.fingerprint(),
            "scene": self.scene.fingerprint(),
            "pipeline": pipeline,
            "verify": {} if self.verify is None else self.verify.fingerprint(),
        }
        return flatten(hashes)
