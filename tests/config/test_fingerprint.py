"""The fingerprint has the content of every file that pixels depend on.

Damaged files are named before a run.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel
from safetensors.numpy import save_file

from synthgen import cli, registry
from synthgen.config import ConfigError, Job, load_job
from synthgen.engine.worker import sample_scene
from synthgen.layouts.fit import fit_model
from synthgen.pipelines.base import Numerics
from synthgen.scenes.scene import SceneSpec, describe_damage, list_image_files
from synthgen.yamlfile import parse_yaml
from tests.pipelines.single_file import write_single_file

REGION_BOX = "row_init: 0, row_end: 64, col_init: 0, col_end: 64"
TEXT_REGION = f"{{prompt: sand, {REGION_BOX}}}"
NO_BOXES = ("layout.objects={}", "layout.canvas=[64, 64]")

# All keys of recipes that take texts: those that are paths of files, and the others.
PATHS = {
    "sampler.file.source",
    "sampler.coco.source",
    "sampler.fit.model",
    "method.paste.cutouts",
    "method.paste.grounds",
    "method.canvas.regions.reference_image",
    "method.inpaint.background_model",
    "scene.backgrounds",
}
PATHS |= {f"method.{name}.model" for name in registry.list_names("method") if name != "paste"}
PATHS |= {f"method.{name}.lora" for name in registry.list_names("method") if name != "paste"}
PATHS |= {f"method.{name}.config" for name in registry.list_names("method") if name != "paste"}
PATHS |= {f"verifier.{name}.model" for name in registry.list_names("verifier") if name != "panel"}
WORDS = {
    "sampler",
    "method",
    "verifier",
    "caption",
    "layer_prompt",
    "region_prompt",
    "prompt",
    "negative_prompt",
    "weights",
    "revision",
    "dtype",
    "categories",
    "labels",
    "text",
    "object",
    "phrases",
    "background",
    "negative",
    "weather",
    "light",
    "season",
    "style",
    "objects",
    "threshold",
    "camera",
}


def text_keys(model: type[BaseModel], prefix: str, visited: tuple[Any, ...] = ()) -> Iterator[str]:
    """Yield the dotted keys of a recipe, and of the models in it, that take texts or paths."""
    for name, field in model.model_fields.items():
        for kind in classes_of(field.annotation):
            if kind in (str, Path):
                yield f"{prefix}.{name}"
            elif not (isinstance(kind, type) and issubclass(kind, BaseModel)):
                continue
            elif kind not in visited and kind is not model:
                yield from text_keys(kind, f"{prefix}.{name}", (*visited, model))


def classes_of(annotation: Any) -> Iterator[Any]:
    """Yield the classes in an annotation, without the texts of a Literal."""
    arguments = [a for a in get_args(annotation) if not isinstance(a, str)]
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from classes_of(argument)


def test_every_text_of_a_recipe_is_known_to_be_words_or_a_path() -> None:
    keys = set(text_keys(SceneSpec, "scene"))
    for kind in ("sampler", "method", "verifier"):
        for name in registry.list_names(kind):
            keys.update(text_keys(registry.load_spec_class(kind, name), f"{kind}.{name}"))
    assert keys >= PATHS
    for key in keys - PATHS:
        assert key.rpartition(".")[2] in WORDS


def save_image(path: Path, seed: int, size: int = 64) -> Path:
    """Save an image of random pixels, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = 4 if path.suffix == ".webp" else 3
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (size, size, channels), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@dataclass(frozen=True)
class Case:
    """A job that reads a file.

    Attributes:
        keys: the keys of the file.
        overrides: the overrides that name the file.
        file: the file.
        other: other content of the file; b"": `changed_bytes`.
    """

    keys: tuple[str, ...]
    overrides: tuple[str, ...]
    file: Path
    other: bytes = b""

    def change(self) -> None:
        """Replace the content of the file."""
        self.file.write_bytes(self.other or changed_bytes(self.file))


def changed_bytes(file: Path) -> bytes:
    """Return other valid content for a file: with another weight, or with one more space."""
    data = file.read_bytes()
    if file.suffix == ".safetensors":
        return data[:-1] + bytes([data[-1] ^ 1])
    return data + b" "


def all_cases(folder: Path, checkpoint: Path) -> list[Case]:
    """Return jobs that read the files of all PATHS."""
    return [
        *sampler_cases(folder),
        *image_cases(folder, checkpoint),
        *model_cases(folder, checkpoint),
        *verifier_cases(folder),
    ]


def sampler_cases(folder: Path) -> Iterator[Case]:
    """Yield the jobs whose sampler reads a file."""
    row = {"width": 100, "height": 100, "categories": ["dog"], "boxes": [[10, 10, 40, 40]]}
    other = {**row, "boxes": [[10, 10, 40, 42]]}
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    model = folder / "model.json"
    model.write_text(json.dumps(fit_model(str(rows))))
    for name in ("file", "coco"):
        layout = f"layout={{sampler: {name}, canvas: [64, 64], source: {rows}}}"
        yield Case((f"sampler.{name}.source",), (layout,), rows, json.dumps(other).encode())
    layout = f"layout={{sampler: fit, canvas: [64, 64], model: {model}}}"
    changed = json.dumps({**json.loads(model.read_text()), "max_iou": 0.5}).encode()
    yield Case(("sampler.fit.model",), (layout,), model, changed)


def image_cases(folder: Path, checkpoint: Path) -> Iterator[Case]:
    """Yield the jobs that read images; their other content is an image too."""
    red = save_image(folder / "red.png", 0).read_bytes()
    blue = save_image(folder / "blue.png", 1).read_bytes()
    cutout = save_image(folder / "cut/dog/brown_0.webp", 2)
    ground = save_image(folder / "ground/deep/red.png", 3)
    other_cutout = save_image(folder / "other.webp", 4).read_bytes()
    background = save_image(folder / "backgrounds/red.png", 5)
    reference = save_image(folder / "reference.png", 6)
    cutouts = (f"pipeline.cutouts={folder}/cut",)
    yield Case(("method.paste.cutouts",), cutouts, cutout, other_cutout)
    yield Case(("method.paste.grounds",), (f"pipeline.grounds={folder}/ground",), ground, red)
    backgrounds = f"scene.backgrounds={folder}/backgrounds"
    yield Case(("scene.backgrounds",), (backgrounds,), background, red)
    mixture = ("pipeline=mixture-tiny", f"pipeline.model={checkpoint}", backgrounds)
    yield Case(("scene.backgrounds",), mixture, background, blue)
    region = f"{{kind: image, {REGION_BOX}, reference_image: {reference}}}"
    canvas = f"pipeline={{method: canvas, model: {checkpoint}, regions: [{TEXT_REGION}, {region}]}}"
    yield Case(("method.canvas.regions.reference_image",), (canvas, *NO_BOXES), reference, red)


def model_cases(folder: Path, checkpoint: Path) -> Iterator[Case]:
    """Yield the jobs that read a checkpoint or a LoRA, for each method."""
    lora = folder / "lora/lora.safetensors"
    lora.parent.mkdir()
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    weights = {
        f"{layer}A.weight": np.ones((2, 8), np.float32),
        f"{layer}B.weight": np.ones((8, 2), np.float32),
    }
    save_file(weights, lora)
    single_file = folder / "model.safetensors"
    write_single_file(checkpoint, single_file)
    parts = (
        "model_index.json",
        "unet/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    )
    required_keys = {
        "tiling": "prompt: sand, tile_height: 64, tile_width: 64, tile_row_overlap: 32, "
        "tile_col_overlap: 32, ",
        "canvas": f"regions: [{TEXT_REGION}], ",
    }
    for name in registry.list_names("method"):
        if name == "paste":
            continue
        recipe = f"method: {name}, {required_keys.get(name, '')}model: {checkpoint}"
        others = NO_BOXES if name in required_keys else ()
        for part in parts:
            overrides = (f"pipeline={{{recipe}}}", *others)
            yield Case((f"method.{name}.model",), overrides, checkpoint / part)
        overrides = (f"pipeline={{{recipe}, lora: {folder}/lora}}", *others)
        yield Case((f"method.{name}.lora",), overrides, lora)
        single = recipe.replace(f"model: {checkpoint}", f"model: {single_file}")
        overrides = (f"pipeline={{{single}, config: {checkpoint}}}", *others)
        settings = checkpoint / "scheduler/scheduler_config.json"
        yield Case((f"method.{name}.config",), overrides, settings)
    backgrounds = f"pipeline={{method: inpaint, background_model: {checkpoint}}}"
    for part in parts:
        yield Case(("method.inpaint.background_model",), (backgrounds,), checkpoint / part)


def verifier_cases(folder: Path) -> Iterator[Case]:
    """Yield the jobs whose verifier reads a model, also as a member of a panel."""
    model = folder / "looks"
    model.mkdir()
    (model / "config.json").write_text('{"id2label": {"0": "dog"}}')
    save_file({"weight": np.ones(2, np.float32)}, model / "model.safetensors")
    for name in ("classifier", "clip", "detector"):
        keys = (f"verifier.{name}.model",)
        recipe = f"{{verifier: {name}, model: {model}}}"
        for file in model.iterdir():
            yield Case(keys, (f"verify={recipe}",), file)
            yield Case(keys, (f"verify={{verifier: panel, of: [{recipe}]}}",), file)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache of this test, because checkpoints in one file are converted into it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def load_case(make_job: Callable[..., Job], case: Case) -> Job:
    """Return the job of a case.

    The models of `grounded` and of verifiers are not validated, because those of this test do not
    suit them.
    """
    if case.overrides[0].startswith("verify="):
        data = parse_yaml(case.overrides[0].removeprefix("verify="), "").data
        verifier = registry.load_spec_class("verifier", data["verifier"]).model_validate(data)
        return make_job().model_copy(update={"verify": verifier})
    if "method: grounded" in " ".join(case.overrides):
        recipe = parse_yaml(case.overrides[0].removeprefix("pipeline="), "").data
        spec = registry.load_spec_class("method", "grounded")
        keys = {key: recipe.get(key) for key in ("model", "lora", "config")}
        pipeline = spec(**keys)
        return make_job().model_copy(update={"pipeline": pipeline})
    return make_job(*case.overrides)


def test_a_change_of_any_file_that_a_recipe_names_changes_the_fingerprint(
    make_job: Callable[..., Job], own_checkpoint: Path, tmp_path: Path
) -> None:
    tested: set[str] = set()
    for case in all_cases(tmp_path, own_checkpoint):
        before = load_case(make_job, case).fingerprint()
        assert load_case(make_job, case).fingerprint() == before
        old = case.file.read_bytes()
        case.change()
        after = load_case(make_job, case).fingerprint()
        case.file.write_bytes(old)
        changed = {key for key in before if before[key] != after[key]}
        assert changed, f"{case.keys}: a change of {case.file.name} is not detected"
        assert all("sha256" in key for key in changed)
        tested |= set(case.keys)
    assert tested == PATHS


def test_names_of_images_are_in_the_fingerprint_but_not_their_folder(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    save_image(tmp_path / "bg/a/red.png", 0)
    save_image(tmp_path / "bg/b/red.png", 1)
    key = "scene.backgrounds_sha256"
    before = make_job(f"scene.backgrounds={tmp_path}/bg").fingerprint()
    shutil.copytree(tmp_path / "bg", tmp_path / "elsewhere/other")
    assert (
        make_job(f"scene.backgrounds={tmp_path}/elsewhere/other").fingerprint()[key] == before[key]
    )
    (tmp_path / "bg/a/red.png").rename(tmp_path / "bg/a/green.png")
    assert make_job(f"scene.backgrounds={tmp_path}/bg").fingerprint()[key] != before[key]
    assert "pipeline.grounds_sha256" not in before  # not used with scene.backgrounds
    save_image(tmp_path / "cut/dog/all/brown_0.webp", 2)
    save_image(tmp_path / "cut/cat/all/brown_1.webp", 3)
    job = f"pipeline.cutouts={tmp_path}/cut"
    before = make_job(job).fingerprint()
    (tmp_path / "cut/dog/all/brown_0.webp").replace(tmp_path / "cut/cat/all/brown_0.webp")
    save_image(tmp_path / "cut/dog/brown_2.webp", 2)
    assert make_job(job).fingerprint() != before


OPENED: list[str] | None = None


def _record_open(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_record_open)


@contextmanager
def record_opened_files() -> Iterator[list[str]]:
    """Yield a list to which the names of the files are added that Python opens meanwhile."""
    global OPENED
    OPENED = []
    try:
        yield OPENED
    finally:
        OPENED = None


@pytest.mark.parametrize("method", ["paste", "mixture", "canvas"])
def test_every_file_that_generation_reads_is_in_the_fingerprint(
    make_job: Callable[..., Job], own_checkpoint: Path, tmp_path: Path, method: str
) -> None:
    """Each file that is opened is changed, and the fingerprint must change."""
    keys = {
        "paste": "method.paste.cutouts",
        "mixture": "scene.backgrounds",
        "canvas": "method.canvas.regions.reference_image",
    }
    cases = [case for case in all_cases(tmp_path, own_checkpoint) if keys[method] in case.keys]
    case = cases[-1]
    more = (f"pipeline.grounds={tmp_path}/ground",) if method == "paste" else ("pipeline.steps=1",)
    job = make_job(*case.overrides, *more)
    with record_opened_files() as names:
        painter = job.pipeline.load(job.scene, Numerics())
        painter([sample_scene(job, 0)], [np.random.SeedSequence(0)])
    files = {Path(name).resolve() for name in names if name.startswith(str(tmp_path))}
    assert case.file.resolve() in files
    assert len(files) >= 2
    base = job.fingerprint()
    for file in files:
        old = file.read_bytes()
        file.write_bytes(changed_bytes(file))
        assert job.fingerprint() != base, f"{file} is read, and a change of it is not detected"
        file.write_bytes(old)


def test_other_backgrounds_are_refused_before_anything_is_written(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save_image(tmp_path / "bg/red.png", 0, 256)
    job = [str(job_file), f"scene.backgrounds={tmp_path}/bg"]
    assert cli.main(["run", *job, "images=2"]) == 0
    save_image(image, 1, 256)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert cli.main(["run", *job, "images=4"]) == 2
    assert "scene.backgrounds_sha256: was '" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    save_image(image, 0, 256)
    assert cli.main(["run", *job, "images=4"]) == 0


def test_damaged_images_are_named_before_a_run(
    make_job: Callable[..., Job], job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bg/a.jpg", "bg/b.png", "cut/dog/brown_0.webp", "one.png"):
        save_image(tmp_path / name, 0)
    cut = (tmp_path / "bg/a.jpg").read_bytes()
    (tmp_path / "bg/a.jpg").write_bytes(cut[: len(cut) // 2])
    assert cli.main(["run", str(job_file), f"scene.backgrounds={tmp_path}/bg"]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(
        f"synthgen: command line: scene.backgrounds: '{tmp_path}/bg/a.jpg' does not decode: "
    )
    assert message.endswith("; mend or remove it")
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(
        ConfigError, match=r"command line: pipeline.grounds: '.*bg/a.jpg' does not decode"
    ):
        make_job(f"pipeline.grounds={tmp_path}/bg")
    (tmp_path / "cut/dog/brown_1.webp").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"command line: pipeline.cutouts: '.*dog/brown_1.webp' does not decode"
    ):
        make_job(f"pipeline.cutouts={tmp_path}/cut")
    (tmp_path / "one.png").write_bytes((tmp_path / "one.png").read_bytes()[:200])
    region = f"{{kind: image, {REGION_BOX}, reference_image: {tmp_path}/one.png}}"
    with pytest.raises(ConfigError, match=r"reference_image: '.*one.png' does not decode"):
        load_job(str(job_file), [f"pipeline={{method: canvas, regions: [{region}]}}"])


def test_damaged_images_are_counted_and_files_of_macos_are_ignored(tmp_path: Path) -> None:
    save_image(tmp_path / "good.png", 0)
    (tmp_path / "._good.png").write_bytes(b"Mac OS X")
    assert [p.name for p in list_image_files(tmp_path)] == ["good.png"]
    assert describe_damage(list_image_files(tmp_path)) == ""
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert describe_damage(list_image_files(tmp_path)) == (
        f"'{tmp_path}/deep.png' has mode I;16; save it with 8 bits a channel; and 1 more of 3 "
        "images; mend or remove it"
    )
    assert describe_damage([tmp_path / "gone.png"]).startswith(
        f"'{tmp_path}/gone.png' cannot be read: No such file"
    )


@pytest.mark.parametrize("method", ["tiling", "canvas"])
def test_methods_without_boxes_refuse_backgrounds(
    make_job: Callable[..., Job], tmp_path: Path, method: str
) -> None:
    save_image(tmp_path / "bg/red.png", 0)
    with pytest.raises(ConfigError, match=f"pipeline.method: {method} generates nothing into"):
        make_job(f"pipeline={method}-tiny", f"scene.backgrounds={tmp_path}/bg", "layout.objects={}")
