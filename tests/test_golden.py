"""Golden layouts, labels and images detect every change of what is generated.

Layouts, labels and images of `paste` are compared with exact digests, images of networks with small
PNG files within a tolerance. After an intended change run `RENEW_GOLDEN=1 pytest
tests/test_golden.py`, look at the images, and describe the change in CHANGELOG.md.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from synthgen import registry
from synthgen.config import Job, load_job
from synthgen.engine.generation import run
from synthgen.layouts.base import Layout, SamplerSpec
from synthgen.layouts.fit import fit_model
from synthgen.randomness import Stream, seed_sequence
from tests.conftest import save_tiny_checkpoint
from tests.pipelines.diffusion.test_grounding import gated_unet
from tests.pipelines.diffusion.test_text_encoding import make_sdxl

GOLDEN = Path(__file__).parent / "golden"
DIGESTS = GOLDEN / "digests.json"
RENEW = bool(os.environ.get("RENEW_GOLDEN"))

# The largest mean and the largest single difference of an image, in grey levels. On one machine
# images are equal to the bit. Other instructions round sums differently: with ATEN_CPU_CAPABILITY
# default and avx2, ONEDNN_MAX_CPU_ISA SSE41 to AVX512_CORE and MKL_CBWR=COMPATIBLE the difference
# was at most 1, and 0.0002 on average: one value in 5,000, which was near the middle of two levels.
MAX_MEAN = 0.02
MAX_DIFFERENCE = 2

SIDE = 80
JOB: dict[str, Any] = {
    "version": 1,
    "name": "golden",
    "images": 1,
    "seed": 3,
    "layout": {
        "sampler": "scatter",
        "canvas": [SIDE, SIDE],
        "objects": {"dog": 1, "cat": 1},
        "size": [26, 36],
        "gap": 2,
    },
    "scene": {
        "object": ["a brown {category}", "a white {category}"],
        "background": "a field of grass",
    },
    "pipeline": {"method": "paste"},
    "output": {"image_format": "png"},
    "workers": 0,
    "batch_size": 1,
}

# The smallest recipe in which samplers make all their random choices.
OBJECTS = {
    "dog": [1, 4],
    "cat": {"share": 1, "probability": 0.8, "label": False},
    "ball": {"share": 2, "size": [10, 20]},
}
COMMON: dict[str, Any] = {
    "canvas": [256, 192],
    "objects": OBJECTS,
    "total": [6, 9],
    "size": [12, 40],
}
SAMPLERS: dict[str, dict[str, Any]] = {
    "scatter": {**COMMON, "spread": "blue-noise"},
    "crowd": {**COMMON, "max_iou": 0.3},
    "grid": {**COMMON, "jitter": 0.7},
    "pack": {"canvas": [256, 192], "objects": {"dog": [3, 9]}, "coverage": 0.5},
    "perspective": {"canvas": [256, 192], "objects": {"dog": [2, 5]}},
    "coco": {"canvas": [128, 128]},
    "file": {"canvas": [128, 128]},
    "fit": {"canvas": [128, 128]},
}

PLACED = ["layout.objects={dog: 2}", "scene.object=a dog"]
EMPTY = ["layout.objects={}", f"layout.canvas=[{SIDE}, {SIDE}]"]
TILES = [
    "pipeline.tile_height=64",
    "pipeline.tile_width=64",
    "pipeline.tile_row_overlap=48",
    "pipeline.tile_col_overlap=48",
]
WHOLE = (
    "{row_init: 0, row_end: 80, col_init: 0, col_end: 80, prompt: a field of grass, "
    "guidance_scale: 1, mask_type: constant, mask_weight: 0.1}"
)
DOG = (
    "{row_init: 8, row_end: 72, col_init: 8, col_end: 72, "
    "prompt: 'a brown dog, a field of grass', guidance_scale: 3, mask_type: quartic}"
)
REROLL = "{kind: reroll, row_init: 0, row_end: 32, col_init: 0, col_end: 32, region_seed: 5}"

WINDOWS = ["pipeline.context=0.13", "pipeline.outset=[0, 0, 0, 0]"]
FLOAT32 = "pipeline.dtype=float32"  # the only number format that all processors compute alike

# For each image: the overrides that generate it, and a slight change that must be detected.
IMAGES: dict[str, tuple[list[str], str]] = {
    "mixture": (
        [
            "pipeline=mixture-tiny",
            *WINDOWS,
            "pipeline.scale=1",
            "pipeline.steps=3",
            "pipeline.background_window=64",
        ],
        "pipeline.background_weight=0.1",
    ),
    "mixture-into-an-image": (
        [
            "pipeline=mixture-tiny",
            *WINDOWS,
            "pipeline.scale=1",
            "pipeline.steps=3",
            "scene.backgrounds=$ground",
        ],
        "pipeline.mask=gaussian",
    ),
    "inpaint": (
        [
            "pipeline=inpaint-tiny",
            "pipeline.steps=3",
            "pipeline.background_steps=2",
            "pipeline.background_window=64",
            "pipeline.window=96",
        ],
        "pipeline.object_share=0.5",
    ),
    "regional_attention": (
        [
            "pipeline=regional-attention-tiny",
            "pipeline.scale=1",
            "pipeline.steps=3",
            "pipeline.tile=64",
        ],
        "pipeline.margin=0.3",
    ),
    "layered": (
        ["pipeline=layered-tiny", "pipeline.scale=1", "pipeline.steps=3", "pipeline.tile=64"],
        "pipeline.lambda_1=0.25",
    ),
    "layered-mixed": (
        [
            "pipeline=layered-tiny",
            "pipeline.scale=1",
            "pipeline.steps=3",
            "pipeline.variant=mixed",
            *PLACED,
        ],
        "pipeline.gamma=0.3",
    ),
    "grounded": (
        ["pipeline=grounded-tiny", "pipeline.scale=1", "pipeline.steps=4", "pipeline.window=64"],
        "pipeline.stages=[0.5, 0.0]",
    ),
    "annotation_tokens": (
        ["pipeline=annotation-tokens-tiny", "pipeline.steps=3", "pipeline.guidance_scale=2"],
        "pipeline.caption='{background}'",
    ),
    "annotation_mask": (
        ["pipeline=annotation-mask-tiny", "pipeline.steps=3", "pipeline.tile=64"],
        "pipeline.strength=0.5",
    ),
    "tiling": (
        [
            "pipeline=tiling-tiny",
            "pipeline.prompt=[[a field of grass, sand], [gravel, sand]]",
            "pipeline.steps=3",
            *TILES,
            *EMPTY,
            "pipeline.seed_tiles=[[7, null], [null, 8]]",
            "pipeline.seed_tiles_mode=exclusive",
        ],
        "pipeline.seed_tiles_noise=cut",
    ),
    "canvas": (
        [
            "pipeline=canvas-tiny",
            f"pipeline.regions=[{WHOLE}, {DOG}]",
            f"pipeline.reroll_regions=[{REROLL}]",
            "pipeline.steps=3",
            *EMPTY,
        ],
        "pipeline.reroll_regions=[]",
    ),
    "sdxl": (
        [
            "pipeline.method=mixture",
            "pipeline.model=$sdxl",
            "pipeline.steps=3",
            "layout.canvas=[64, 64]",
            "layout.objects={dog: 1}",
        ],
        "scene.negative=' '",
    ),
    "gligen": (
        [
            "pipeline.method=grounded",
            "pipeline.model=$gligen",
            "pipeline.steps=4",
            "pipeline.window=32",
            "pipeline.stages=[0.3, 0.4]",
            "layout.canvas=[64, 64]",
            "layout.objects={dog: 1}",
        ],
        "pipeline.stages_rounding=up",
    ),
    "camera": (
        [
            "scene.camera={gaussian_blur: {probability: 1}, exposure: {probability: 1}, "
            "gaussian_noise: {probability: 1}}"
        ],
        "scene.camera.exposure.stops=[-1, 0.9]",
    ),
}


def read_digests() -> dict[str, str]:
    """Return the golden digests by name."""
    return json.loads(DIGESTS.read_text()) if DIGESTS.is_file() else {}


def check_digest(name: str, data: bytes) -> None:
    """Compare the digest of the data with the golden one, or renew the golden one."""
    digest = hashlib.sha256(data).hexdigest()
    known = read_digests()
    if RENEW:
        DIGESTS.write_text(json.dumps({**known, name: digest}, indent=1, sort_keys=True) + "\n")
    else:
        assert known[name] == digest, f"{name} has changed"


def encode_layout(layout: Layout) -> bytes:
    """Return a layout as bytes.

    Numbers are rounded to hundredths, because exp and log differ in the last bit between
    processors.
    """
    rounded: dict[str, Any] = {}
    for name in ("boxes", "depth", "occluded", "labelled"):
        values = getattr(layout, name)
        rounded[name] = None
        if values is not None:
            rounded[name] = np.round(np.asarray(values, np.float64) * 100).astype(int).tolist()
    words = [layout.width, layout.height, layout.categories, layout.phrases, layout.caption]
    return json.dumps([words, rounded]).encode()


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of annotated images, with boxes on whole pixels."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("golden") / "rows.jsonl"
    lines = []
    for n in range(12):
        low = rng.integers(0, 140, (3 + n % 3, 2))
        boxes = np.concatenate([low, low + rng.integers(20, 60, low.shape)], 1).tolist()
        lines.append(
            {
                "width": 200,
                "height": 200,
                "boxes": boxes,
                "categories": ["dog", "cat", "ball", "dog", "dog"][: len(boxes)],
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def create_sampler(name: str, rows: Path) -> SamplerSpec:
    """Return the golden sampler of a name."""
    recipe = {"sampler": name, **SAMPLERS[name]}
    if name in ("coco", "file"):
        recipe["source"] = str(rows)
    if name == "fit":
        model = rows.with_name("fit.json")
        model.write_text(json.dumps(fit_model(str(rows))))
        recipe["model"] = str(model)
    spec: SamplerSpec = registry.load_spec_class("sampler", name).model_validate(recipe)
    return spec


@pytest.mark.parametrize("name", registry.list_names("sampler"))
def test_layouts_of_a_sampler_are_the_golden_ones(name: str, rows: Path) -> None:
    spec = create_sampler(name, rows)
    layouts = [spec.sample(np.random.default_rng([7, k]), k) for k in range(4)]
    check_digest(f"layouts of {name}", b"".join(map(encode_layout, layouts)))


@pytest.fixture(scope="module")
def golden_job(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Callable[..., Job]:
    """Return a function that loads the golden job with overrides.

    Names with a $ stand for folders with checkpoints and images.
    """
    folder = tmp_path_factory.mktemp("job")
    (folder / "ground").mkdir()
    y, x = np.mgrid[:SIDE, :SIDE]
    pixels = np.stack([(x * 2) % 256, (y * 2) % 256, (x + y) % 256], 2).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "ground/sand.png")
    make_sdxl(checkpoint, folder / "sdxl")
    make_gligen(folder)
    (folder / "golden.yaml").write_text(json.dumps(JOB))
    count = iter(range(1000))

    def make(*overrides: str) -> Job:
        texts = [text.replace("=$", f"={folder}/") for text in overrides]
        texts.append(f"output.path={folder}/out{next(count)}")
        return load_job(str(folder / "golden.yaml"), texts)

    return make


def make_gligen(folder: Path) -> None:
    """Save a tiny random checkpoint whose gated layers have an effect."""
    from synthgen.pipelines.mixture.pipeline import MixturePipeline

    plain = save_tiny_checkpoint(folder / "plain", 4, 1)
    pipeline = MixturePipeline.from_pretrained(plain, use_safetensors=True)
    pipeline.unet = gated_unet(4)
    pipeline.save_pretrained(folder / "gligen")


def generate(job: Job) -> NDArray[np.uint8]:
    """Run a job, and return its first image (H, W, 3)."""
    run(job)
    with tarfile.open(Path(job.output.path) / "shards/000000.tar") as tar:
        data = tar.extractfile("000000000.png")
        assert data is not None
        return np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))


def measure_difference(image: NDArray[np.uint8], other: NDArray[np.uint8]) -> tuple[float, int]:
    """Return the mean and the largest difference of two images, in grey levels."""
    difference = np.abs(image.astype(int) - other.astype(int))
    return float(difference.mean()), int(difference.max())


def read_golden(name: str) -> NDArray[np.uint8]:
    """Return a golden image (H, W, 3)."""
    with Image.open(GOLDEN / f"{name}.png") as image:
        return np.asarray(image)


def test_images_and_labels_of_paste_are_the_golden_ones(golden_job: Callable[..., Job]) -> None:
    job = golden_job(
        "images=2",
        "layout.sampler=perspective",
        "layout.size=[0.4, 1.5]",
        "layout.gap=0",
        "layout.max_iou=0.2",
        "layout.least=4",
    )
    pixels = generate(job)
    check_digest("image of paste", pixels.tobytes())
    coco = json.loads((Path(job.output.path) / "annotations/instances.json").read_text())
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd", "segmentation", "phrase")
    labels = [[annotation.get(key) for key in keys] for annotation in coco["annotations"]]
    assert len(labels) == 4
    check_digest("labels of paste", json.dumps(labels).encode())


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_the_golden_one_and_a_changed_key_is_detected(
    name: str, golden_job: Callable[..., Job]
) -> None:
    overrides, change = IMAGES[name]
    if name != "camera":
        overrides = [*overrides, FLOAT32]
    image = generate(golden_job(*overrides))
    if RENEW:
        Image.fromarray(image).save(GOLDEN / f"{name}.png", optimize=True)
    mean, most = measure_difference(image, read_golden(name))
    assert mean <= MAX_MEAN, f"{name}: mean difference {mean:.3f} grey levels"
    assert most <= MAX_DIFFERENCE, f"{name}: largest difference {most} grey levels"
    mean, most = measure_difference(generate(golden_job(*overrides, change)), read_golden(name))
    assert mean > MAX_MEAN or most > MAX_DIFFERENCE, f"{change} is not detected: {mean:.3f}, {most}"


@pytest.mark.parametrize("name", ["mixture", "camera"])
def test_noise_from_the_stream_of_layouts_is_detected(
    name: str, golden_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = int(Stream.NOISE)

    def confuse_streams(
        seed: int, index: int, stream: Any, attempt: int = 0
    ) -> np.random.SeedSequence:
        wrong_stream = Stream.LAYOUT if int(stream) == noise else stream
        return seed_sequence(seed, index, wrong_stream, attempt)

    monkeypatch.setattr("synthgen.engine.worker.seed_sequence", confuse_streams)
    mean, most = measure_difference(generate(golden_job(*IMAGES[name][0])), read_golden(name))
    assert mean > 100 * MAX_MEAN
    assert most > 10 * MAX_DIFFERENCE


def test_every_method_has_a_golden_image_and_all_files_are_small() -> None:
    methods = {name.partition("-")[0] for name in IMAGES} | {"paste"}
    assert methods >= set(registry.list_names("method"))
    assert {p.stem for p in GOLDEN.glob("*.png")} == set(IMAGES)
    assert sum(p.stat().st_size for p in GOLDEN.iterdir()) < 200_000
    expected = {f"layouts of {name}" for name in registry.list_names("sampler")}
    expected |= {"image of paste", "labels of paste"}
    assert set(read_digests()) == expected
