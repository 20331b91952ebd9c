"""Every file that pixels depend on is in the fingerprint by its content, and broken ones are named before a run."""

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
from synthgen.engine.worker import draw_scene
from synthgen.layouts.fit import learn
from synthgen.pipelines.base import Numerics
from synthgen.scenes.scene import SceneSpec, describe_damage, pictures
from synthgen.yamlfile import parse_yaml

# The keys of recipes that are texts. Whoever adds one says here what it is: the path of a file, or words.
PATHS = {
    "sampler.file.source", "sampler.coco.source", "sampler.fit.model",
    "method.paste.cutouts", "method.paste.grounds", "method.canvas.regions.reference_image",
    *(f"method.{name}.{key}" for key in ("model", "lora") for name in registry.names("method") if name != "paste"),
    *(f"verifier.{name}.model" for name in registry.names("verifier") if name != "panel"),
    "scene.backgrounds",
}  # fmt: skip
WORDS = {
    "sampler", "method", "verifier", "caption", "layer_prompt", "region_prompt", "prompt", "negative_prompt",
    "weights", "dtype", "categories", "labels", "text", "object", "phrases", "background", "negative", "weather",
    "light", "season", "style", "objects", "threshold", "camera",
}  # fmt: skip


def texts(model: type[BaseModel], prefix: str, seen: tuple[Any, ...] = ()) -> Iterator[str]:
    """Dotted keys of a recipe, and of the models in it, that take texts or paths of any length."""
    for name, about in model.model_fields.items():
        for kind in kinds(about.annotation):
            if kind in (str, Path):
                yield f"{prefix}.{name}"
            elif (
                isinstance(kind, type)
                and issubclass(kind, BaseModel)
                and kind not in seen
                and kind is not model
            ):
                yield from texts(kind, f"{prefix}.{name}", (*seen, model))


def kinds(annotation: Any) -> Iterator[Any]:
    """The classes that an annotation is made of; a Literal's texts are none of them."""
    arguments = [a for a in get_args(annotation) if not isinstance(a, str)]
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from kinds(argument)


def test_every_text_of_a_recipe_is_known_to_be_words_or_a_path() -> None:
    found = set(texts(SceneSpec, "scene"))
    for kind in ("sampler", "method", "verifier"):
        found |= {
            key
            for name in registry.names(kind)
            for key in texts(registry.spec_class(kind, name), f"{kind}.{name}")
        }
    assert found >= PATHS
    assert {key for key in found - PATHS if key.rpartition(".")[2] not in WORDS} == set()


def save(path: Path, colour: int, size: int = 64) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(colour).integers(
        0, 256, (size, size, 4 if path.suffix == ".webp" else 3), np.uint8
    )
    Image.fromarray(pixels).save(path)
    return path


@dataclass(frozen=True)
class Case:
    """A job that reads a file: the keys it stands under, the file, and the file's other content."""

    keys: tuple[str, ...]
    overrides: tuple[str, ...]
    file: Path
    other: bytes = b""

    def change(self) -> None:
        self.file.write_bytes(self.other or changed_bytes(self.file))


def changed_bytes(file: Path) -> bytes:
    """Other content of a file that is as good: another weight, or a space more."""
    data = file.read_bytes()
    return data[:-1] + bytes([data[-1] ^ 1]) if file.suffix == ".safetensors" else data + b" "


def cases(folder: Path, checkpoint: Path) -> Iterator[Case]:
    """A job for each path of PATHS."""
    row = {"width": 100, "height": 100, "categories": ["dog"], "boxes": [[10, 10, 40, 40]]}
    other = {**row, "boxes": [[10, 10, 40, 42]]}
    rows = folder / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    model = folder / "model.json"
    model.write_text(json.dumps(learn(str(rows))))
    for name in ("file", "coco"):
        layout = f"layout={{sampler: {name}, canvas: [64, 64], source: {rows}}}"
        yield Case((f"sampler.{name}.source",), (layout,), rows, json.dumps(other).encode())
    fit = f"layout={{sampler: fit, canvas: [64, 64], model: {model}}}"
    changed = json.dumps({**json.loads(model.read_text()), "max_iou": 0.5}).encode()
    yield Case(("sampler.fit.model",), (fit,), model, changed)
    # other content that is no image would be refused first
    red, blue = (
        save(folder / f"{name}.png", n).read_bytes() for n, name in enumerate(("red", "blue"))
    )
    cut, ground = save(folder / "cut/dog/brown_0.webp", 2), save(folder / "ground/deep/red.png", 3)
    cut_other = save(folder / "other.webp", 4).read_bytes()
    backgrounds = save(folder / "backgrounds/red.png", 5)
    yield Case(("method.paste.cutouts",), (f"pipeline.cutouts={folder}/cut",), cut, cut_other)
    yield Case(("method.paste.grounds",), (f"pipeline.grounds={folder}/ground",), ground, red)
    yield Case(
        ("scene.backgrounds",), (f"scene.backgrounds={folder}/backgrounds",), backgrounds, red
    )
    mixture = ("pipeline=mixture-tiny", f"pipeline.model={checkpoint}")
    yield Case(
        ("scene.backgrounds",),
        (*mixture, f"scene.backgrounds={folder}/backgrounds"),
        backgrounds,
        blue,
    )
    reference = save(folder / "reference.png", 6)
    region = f"{{kind: image, row_init: 0, row_end: 64, col_init: 0, col_end: 64, reference_image: {reference}}}"
    text = "{prompt: sand, row_init: 0, row_end: 64, col_init: 0, col_end: 64}"
    empty = ("layout.objects={}", "layout.canvas=[64, 64]")
    canvas = (
        f"pipeline={{method: canvas, model: {checkpoint}, regions: [{text}, {region}]}}",
        *empty,
    )
    yield Case(("method.canvas.regions.reference_image",), canvas, reference, red)
    lora = folder / "lora/lora.safetensors"
    lora.parent.mkdir()
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_"
    save_file(
        {
            f"{layer}A.weight": np.ones((2, 8), np.float32),
            f"{layer}B.weight": np.ones((8, 2), np.float32),
        },
        lora,
    )
    for name in registry.names("method"):
        if name == "paste":
            continue
        extra = {
            "tiling": "prompt: sand, tile_height: 64, tile_width: 64, tile_row_overlap: 32, tile_col_overlap: 32, "
        }
        extra |= {"canvas": f"regions: [{text}], "}
        start = f"pipeline={{method: {name}, {extra.get(name, '')}model: {checkpoint}"
        rest = empty if name in ("tiling", "canvas") else ()
        for part in (
            "model_index.json",
            "unet/config.json",
            "scheduler/scheduler_config.json",
            "tokenizer/tokenizer.json",
        ):
            yield Case((f"method.{name}.model",), (f"{start}}}", *rest), checkpoint / part)
        yield Case((f"method.{name}.lora",), (f"{start}, lora: {folder}/lora}}", *rest), lora)
    looks = folder / "looks"
    looks.mkdir()
    (looks / "config.json").write_text('{"id2label": {"0": "dog"}}')
    save_file({"weight": np.ones(2, np.float32)}, looks / "model.safetensors")
    for name in ("classifier", "clip", "detector"):
        for file in looks.iterdir():
            alone = f"{{verifier: {name}, model: {looks}}}"
            yield Case((f"verifier.{name}.model",), (f"verify={alone}",), file)
            yield Case(
                (f"verifier.{name}.model",), (f"verify={{verifier: panel, of: [{alone}]}}",), file
            )


@pytest.fixture
def own_checkpoint(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that a test may change."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def loaded(make_job: Callable[..., Job], case: Case) -> Job:
    """The job of a case; `grounded` and verifiers are not held against their models, which are not made for them."""
    if case.overrides[0].startswith("verify="):
        data = parse_yaml(case.overrides[0].removeprefix("verify="), "").data
        return make_job().model_copy(
            update={
                "verify": registry.spec_class("verifier", data["verifier"]).model_validate(data)
            }
        )
    if "method: grounded" in " ".join(case.overrides):
        spec = registry.spec_class("method", "grounded")
        lora = str(case.file.parent) if case.file.parent.name == "lora" else None
        model = (
            next(p for p in (case.file, *case.file.parents) if p.name == "checkpoint")
            if lora is None
            else case.file.parent.parent / "checkpoint"
        )
        return make_job().model_copy(update={"pipeline": spec(model=str(model), lora=lora)})
    return make_job(*case.overrides)


def test_a_change_of_any_file_that_a_recipe_names_changes_the_fingerprint(
    make_job: Callable[..., Job], own_checkpoint: Path, tmp_path: Path
) -> None:
    met: set[str] = set()
    for case in cases(tmp_path, own_checkpoint):
        before = loaded(make_job, case).fingerprint()
        assert loaded(make_job, case).fingerprint() == before
        old = case.file.read_bytes()
        case.change()
        after = loaded(make_job, case).fingerprint()
        case.file.write_bytes(old)
        changed = {key for key in before if before[key] != after[key]}
        assert changed, f"{case.keys}: {case.file.name} can change unseen"
        assert all("sha256" in key for key in changed)
        met |= set(case.keys)
    assert met == PATHS


def test_names_and_places_of_images_count_but_not_where_their_folder_is(
    make_job: Callable[..., Job], tmp_path: Path
) -> None:
    save(tmp_path / "bg/a/red.png", 0)
    save(tmp_path / "bg/b/red.png", 1)
    key = "scene.backgrounds_sha256"
    before = make_job(f"scene.backgrounds={tmp_path}/bg").fingerprint()
    shutil.copytree(tmp_path / "bg", tmp_path / "elsewhere/other")
    assert (
        make_job(f"scene.backgrounds={tmp_path}/elsewhere/other").fingerprint()[key] == before[key]
    )
    (tmp_path / "bg/a/red.png").rename(tmp_path / "bg/a/green.png")
    assert make_job(f"scene.backgrounds={tmp_path}/bg").fingerprint()[key] != before[key]
    assert "pipeline.grounds_sha256" not in before  # they are not used then
    save(tmp_path / "cut/dog/all/brown_0.webp", 2)
    save(tmp_path / "cut/cat/all/brown_1.webp", 3)
    job = f"pipeline.cutouts={tmp_path}/cut"
    before = make_job(job).fingerprint()
    (tmp_path / "cut/dog/all/brown_0.webp").replace(tmp_path / "cut/cat/all/brown_0.webp")
    save(tmp_path / "cut/dog/brown_2.webp", 2)
    assert make_job(job).fingerprint() != before


OPENED: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED is not None and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


sys.addaudithook(_note)


@contextmanager
def opened() -> Iterator[list[str]]:
    """What Python opens meanwhile."""
    global OPENED
    OPENED = []
    try:
        yield OPENED
    finally:
        OPENED = None


@pytest.mark.parametrize("method", ["paste", "mixture", "canvas"])
def test_whatever_is_read_to_paint_is_in_the_fingerprint(
    make_job: Callable[..., Job], own_checkpoint: Path, tmp_path: Path, method: str
) -> None:
    """Not what recipes say but what is opened: each of these files is changed, and the fingerprint must notice."""
    every = [
        c
        for c in cases(tmp_path, own_checkpoint)
        if not c.file.name.startswith(("config", "model.safe"))
    ]
    wanted = {
        "paste": "method.paste.cutouts",
        "mixture": "scene.backgrounds",
        "canvas": "method.canvas.regions.reference_image",
    }
    case = [c for c in every if wanted[method] in c.keys][-1]
    more = (f"pipeline.grounds={tmp_path}/ground",) if method == "paste" else ("pipeline.steps=1",)
    job = make_job(*case.overrides, *more)
    with opened() as names:
        painter = job.pipeline.load(job.scene, Numerics())
        painter([draw_scene(job, 0)], [np.random.SeedSequence(0)])
    files = {Path(name).resolve() for name in names if name.startswith(str(tmp_path))}
    assert case.file.resolve() in files
    assert len(files) >= 2
    base = job.fingerprint()
    for file in files:
        old = file.read_bytes()
        file.write_bytes(changed_bytes(file))
        assert job.fingerprint() != base, f"{file} is read and can change unseen"
        file.write_bytes(old)


def test_other_backgrounds_are_refused_before_anything_is_written(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "bg/red.png", 0, 256)
    job = [str(job_file), f"scene.backgrounds={tmp_path}/bg"]
    assert cli.main(["run", *job, "images=2"]) == 0
    save(image, 1, 256)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert cli.main(["run", *job, "images=4"]) == 2
    assert "scene.backgrounds_sha256: was '" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    save(image, 0, 256)
    assert cli.main(["run", *job, "images=4"]) == 0


def test_images_that_cannot_be_used_are_named_before_a_run(
    make_job: Callable[..., Job], job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("bg/a.jpg", "bg/b.png", "cut/dog/brown_0.webp", "one.png"):
        save(tmp_path / name, 0)
    cut = (tmp_path / "bg/a.jpg").read_bytes()
    (tmp_path / "bg/a.jpg").write_bytes(cut[: len(cut) // 2])
    assert cli.main(["run", str(job_file), f"scene.backgrounds={tmp_path}/bg"]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith(
        f"synthgen: command line: scene.backgrounds: '{tmp_path}/bg/a.jpg' does not decode: "
    )
    assert said.endswith("; mend or remove it")
    assert "\n" not in said
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
    region = f"{{kind: image, row_init: 0, row_end: 64, col_init: 0, col_end: 64, reference_image: {tmp_path}/one.png}}"
    with pytest.raises(ConfigError, match=r"reference_image: '.*one.png' does not decode"):
        load_job(str(job_file), [f"pipeline={{method: canvas, regions: [{region}]}}"])


def test_damage_is_counted_and_files_of_macos_are_no_images(tmp_path: Path) -> None:
    save(tmp_path / "good.png", 0)
    (tmp_path / "._good.png").write_bytes(b"Mac OS X")
    assert [p.name for p in pictures(tmp_path)] == ["good.png"]
    assert describe_damage(pictures(tmp_path)) == ""
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    said = describe_damage(pictures(tmp_path))
    assert (
        said
        == f"'{tmp_path}/deep.png' has mode I;16; save it with 8 bits a channel; and 1 more of 3 images; mend or remove it"
    )
    assert describe_damage([tmp_path / "gone.png"]).startswith(
        f"'{tmp_path}/gone.png' cannot be read: No such file"
    )


@pytest.mark.parametrize("method", ["tiling", "canvas"])
def test_methods_without_boxes_say_that_they_use_no_backgrounds(
    make_job: Callable[..., Job], tmp_path: Path, method: str
) -> None:
    save(tmp_path / "bg/red.png", 0)
    with pytest.raises(ConfigError, match=f"pipeline.method: {method} paints nothing into"):
        make_job(f"pipeline={method}-tiny", f"scene.backgrounds={tmp_path}/bg", "layout.objects={}")
