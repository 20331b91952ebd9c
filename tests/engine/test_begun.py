"""Datasets that an older version began: finished with its defaults, or refused with the key.

`data/begun` holds what commit 6743d3b left when it was killed after the first shard of each, the
digests of what it makes of the whole, and the keys and defaults of all its specs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python

from synthgen import registry
from synthgen.config import Job, OutputSpec, load_job
from synthgen.dataset.check import check_dataset
from synthgen.dataset.former_defaults import (
    FORMER,
    add_former_defaults,
    find_former_values,
    former_defaults,
)
from synthgen.dataset.info import REVISIONS, ChangedJobError
from synthgen.dataset.versions import read_versions
from synthgen.engine.generation import run
from synthgen.engine.repair import repair
from synthgen.storage.location import open_store

BEGUN = Path(__file__).parent / "data/begun"


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the datasets, which is the working directory.

    Their markers name the versions that are installed.
    """
    shutil.copytree(BEGUN, tmp_path / "begun")
    monkeypatch.chdir(tmp_path / "begun")
    for file in (tmp_path / "begun").glob("out/*/shards/*.json"):
        marker = json.loads(file.read_text())
        marker["numerics"]["versions"] = read_versions()
        file.write_text(json.dumps(marker))
    return tmp_path / "begun"


def same_versions(name: str) -> bool:
    """Return whether the installed versions that pixels depend on are those of the digests."""
    recorded = json.loads((BEGUN / f"out/{name}/dataset.json").read_text())["versions"]
    return all(
        recorded.get(package) == read_versions().get(package)
        for package in ("numpy", "pillow", "torch", "diffusers")
    )


def events(out: Path) -> list[str]:
    """Return the events of the log."""
    return [json.loads(line)["event"] for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["paste", "grounds", "mixture"])
def test_a_dataset_that_an_older_version_began_is_finished(begun: Path, name: str) -> None:
    out = begun / "out" / name
    first = (out / "shards/000000.tar").read_bytes()
    job = load_job(f"{name}.yaml")
    result = run(job)
    assert (result.made, result.counts["complete"]) == (job.images - 2, True)
    assert check_dataset(open_store(out))[0] == []
    assert (out / "shards/000000.tar").read_bytes() == first
    if same_versions(name):
        digests = json.loads((BEGUN / "digests.json").read_text())[name]
        tars = [file for file in digests if file.endswith(".tar")]
        if name == "mixture":  # another processor rounds differently
            tars = tars[:1]
        for file in tars:
            assert (
                hashlib.sha256((out / "shards" / file).read_bytes()).hexdigest() == digests[file]
            ), file


@pytest.mark.parametrize("name", ["paste", "grounds"])
def test_it_is_finished_from_its_own_job_file_too(begun: Path, name: str) -> None:
    assert run(load_job(f"out/{name}/job.yaml")).counts["complete"]


def test_a_changed_job_is_refused(begun: Path) -> None:
    with pytest.raises(ChangedJobError, match=r"output\.quality: was 92, is 80"):
        run(load_job("paste.yaml", ["output.quality=80"]))


@pytest.fixture
def new_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Change the default of `output.quality`, with a line in FORMER."""
    field = OutputSpec.model_fields["quality"]
    monkeypatch.setattr(field, "default", 40)
    monkeypatch.setitem(FORMER, "output.quality", (92,))
    OutputSpec.model_rebuild(force=True)
    Job.model_rebuild(force=True)
    yield
    monkeypatch.undo()
    OutputSpec.model_rebuild(force=True)
    Job.model_rebuild(force=True)


@pytest.mark.usefixtures("new_default")
@pytest.mark.parametrize("in_fingerprint", [True, False], ids=["changed default", "new key"])
def test_a_former_default_is_used_where_the_default_has_changed(
    begun: Path, in_fingerprint: bool
) -> None:
    out = begun / "out/paste"
    if not in_fingerprint:  # a dataset from before the key existed
        info = json.loads((out / "dataset.json").read_text())
        del info["fingerprint"]["output.quality"]
        (out / "dataset.json").write_text(json.dumps(info))
    assert load_job("paste.yaml").output.quality == 40
    assert run(load_job("paste.yaml")).counts["complete"]
    digests = json.loads((BEGUN / "digests.json").read_text())["paste"]
    if same_versions("paste"):
        assert (
            hashlib.sha256((out / "shards/000002.tar").read_bytes()).hexdigest()
            == digests["000002.tar"]
        )
    assert json.loads((out / "dataset.json").read_text())["fingerprint"]["output.quality"] == 92
    assert load_job(str(out / "job.yaml")).output.quality == 92
    assert [
        e
        for e in events(out)
        if "output.quality is 92, as when this dataset was begun; today's default is 40" in e
    ]
    before = len(events(out))
    assert run(load_job("paste.yaml")).made == 0  # nothing is generated, so nothing is logged
    assert not [e for e in events(out)[before:] if "output.quality" in e]


@pytest.mark.usefixtures("new_default")
def test_a_shard_is_repaired_with_the_former_default(begun: Path) -> None:
    out = begun / "out/paste"
    info = json.loads((out / "dataset.json").read_text())
    del info["fingerprint"]["output.quality"]
    (out / "dataset.json").write_text(json.dumps(info))
    (out / "job.yaml").write_text((out / "job.yaml").read_text().replace("quality: 92, ", ""))
    intact = (out / "shards/000000.tar").read_bytes()
    (out / "shards/000000.tar").write_bytes(b"cut")
    result = repair(open_store(out))
    assert (result.restored, result.unknown, result.left) == ([0], [1, 2], {})
    assert (out / "shards/000000.tar").read_bytes() == intact


@pytest.mark.usefixtures("new_default")
def test_a_value_in_the_job_file_is_not_replaced(begun: Path) -> None:
    with pytest.raises(ChangedJobError, match=r"output\.quality: was 92, is 40"):
        run(load_job("paste.yaml", ["output.quality=40"]))
    fresh = run(load_job("paste.yaml", ["output.path=out/fresh", "images=2"]))
    assert fresh.counts["complete"]
    assert load_job("out/fresh/job.yaml").output.quality == 40


def test_a_key_without_a_line_in_the_table_is_refused_by_name(begun: Path) -> None:
    out = begun / "out/paste"
    info = json.loads((out / "dataset.json").read_text())
    del info["fingerprint"]["pipeline.shadow"]
    (out / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ChangedJobError, match=r"pipeline\.shadow: was not set, is 0\.4"):
        run(load_job("paste.yaml"))


def test_a_hash_that_was_not_recorded_is_accepted_and_logged_once(begun: Path) -> None:
    out = begun / "out/paste"
    info = json.loads((out / "dataset.json").read_text())
    recorded = info["fingerprint"].pop("pipeline.cutouts_sha256")
    (out / "dataset.json").write_text(json.dumps(info))
    assert run(load_job("paste.yaml")).made == 4
    key = "pipeline.cutouts_sha256"
    assert len([event for event in events(out) if key in event and "not recorded" in event]) == 1
    assert (
        json.loads((out / "dataset.json").read_text())["fingerprint"]["pipeline.cutouts_sha256"]
        == recorded
    )
    run(load_job("paste.yaml", ["images=8"]))
    assert len([event for event in events(out) if key in event and "not recorded" in event]) == 1


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the specs in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from models(part)


def add_keys(model: type[BaseModel], name: str, found: dict[str, dict[str, Any]]) -> None:
    """Add the keys of a spec with their defaults, and those of its nested specs."""
    if name in found:
        return
    found[name] = {}
    for key, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        found[name][key] = "..." if default is PydanticUndefined else to_jsonable_python(default)
        for nested in models(field.annotation):
            add_keys(nested, nested.__name__, found)


UNRECORDED = {
    "SamplerSpec",
    "MethodSpec",
    "VerifierSpec",
    "Spoken",
}  # bases, and what is not in the fingerprint
FREE = {
    "version",
    "name",
    "images",
    "workers",
    "threads",
    "batch_size",
    "chunk",
    "gpus",
    "numerics",
    "stall_timeout",
    "spoken",
}
FREE |= {"max_attempts", "max_shard_attempts", "on_reject", "path", "shared"}


def test_every_new_key_and_changed_default_has_a_former_default() -> None:
    """A new key or a changed default needs a line in FORMER; the failure names the key."""
    old = json.loads((BEGUN / "defaults.json").read_text())
    new: dict[str, dict[str, Any]] = {}
    add_keys(Job, "job", new)
    for kind in ("sampler", "method", "verifier"):
        for name in registry.list_names(kind):
            add_keys(registry.load_spec_class(kind, name), f"{kind} {name}", new)
    former = {pattern.rpartition(".")[2]: values for pattern, values in FORMER.items()}
    missing = []
    for spec in old.keys() & new.keys() - UNRECORDED:
        for key, default in new[spec].items():
            if key in FREE or isinstance(default, dict):
                continue
            if key not in old[spec] and key not in former:
                missing.append(f"{spec}: {key} is new")
            elif (
                key in old[spec]
                and old[spec][key] != default
                and old[spec][key] not in former.get(key, ())
            ):
                missing.append(f"{spec}: {key} was {old[spec][key]!r}, is {default!r}")
    assert missing == []


def test_former_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMER, "layout.objects.*.angle", (0, 5))
    assert former_defaults("layout.objects.dog.angle") == (0, 5)
    assert former_defaults("layout.objects.dog.label") == ()
    old = {"a": 1}
    new = {"a": 1, "layout.objects.dog.angle": 9, "b_sha256": "x", "c": 2}
    assert add_former_defaults(old, new) == {"a": 1, "layout.objects.dog.angle": 0, "b_sha256": "x"}
    assert find_former_values(old, new, frozenset()) == {"layout.objects.dog.angle": 0}
    assert find_former_values(old, new, frozenset({"layout.objects.dog.angle"})) == {}
    assert find_former_values({**old, "layout.objects.dog.angle": 5}, new, frozenset()) == {
        "layout.objects.dog.angle": 5
    }
    assert find_former_values({**old, "layout.objects.dog.angle": 7}, new, frozenset()) == {}


def test_given_lists_the_keys_that_are_set(make_job: Callable[..., Job], tmp_path: Path) -> None:
    given = make_job("pipeline.shadow=0.4").user_keys
    assert {
        "pipeline.shadow",
        "layout.size.range",
        "layout.gap",
        "scene.background",
        "images",
    } <= given
    assert not {"output.quality", "pipeline.cutouts", "scene.negative", "layout.spread"} & given
    shipped = load_job("100dogs", ["scene.negative=fog", f"output.path={tmp_path}"]).user_keys
    assert shipped == {"scene.negative", "output.path"}


@pytest.mark.parametrize(
    ("changes", "revisions"),
    [
        ([], {}),
        (["layout={sampler: grid, objects: {dog: 2}}"], {}),
        (["layout={sampler: crowd, objects: {dog: 2}, max_iou: 0}"], {}),
        (["layout={sampler: crowd, objects: {dog: 2}}"], {"pipeline.method_revision": 2}),
        (["layout={sampler: perspective, objects: {dog: 2}}"], {"pipeline.method_revision": 2}),
        (["pipeline=mixture-tiny"], {}),
        (["pipeline=regional-attention-tiny"], {"pipeline.method_revision": 2}),
        (["verify={verifier: detector}"], {"verify.revision": 3}),
    ],
)
def test_a_change_of_behaviour_without_a_key_has_a_revision(
    changes: list[str], revisions: dict[str, int], make_job: Callable[..., Job]
) -> None:
    fingerprint = make_job("layout.canvas=[512, 512]", *changes).fingerprint()
    assert {key: fingerprint[key] for key in REVISIONS if key in fingerprint} == revisions


def test_a_dataset_of_another_revision_is_refused(make_job: Callable[..., Job]) -> None:
    overlapping = "layout={sampler: crowd, canvas: [256, 256], objects: {dog: 2}}"
    job = make_job("images=2", overlapping)
    run(job)
    about = Path(job.output.path) / "dataset.json"
    begun = json.loads(about.read_text())
    del begun["fingerprint"]["pipeline.method_revision"]
    about.write_text(json.dumps(begun))
    with pytest.raises(
        ChangedJobError, match=r"pipeline\.method_revision: was 1, is 2\. Give another output"
    ):
        run(make_job("images=4", overlapping))


def test_a_revision_under_its_former_name_is_known(make_job: Callable[..., Job]) -> None:
    overlapping = "layout={sampler: crowd, canvas: [256, 256], objects: {dog: 2}}"
    job = make_job("images=2", overlapping)
    run(job)
    about = Path(job.output.path) / "dataset.json"
    begun = json.loads(about.read_text())
    fingerprint = begun["fingerprint"]
    fingerprint["pipeline.revision"] = fingerprint.pop("pipeline.method_revision")
    about.write_text(json.dumps(begun))
    assert run(make_job("images=4", overlapping)).made == 2
