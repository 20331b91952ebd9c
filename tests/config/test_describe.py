"""What is told of every name is true."""

from synthgen.cli.describe import all_names
from synthgen.config.describe import describe


def test_everything_that_is_listed_is_described() -> None:
    for name in all_names():
        for description in describe(name):
            assert description.text, name
            assert description.parameters, name
            assert "\n".join(description.lines()).startswith(f"{name}: {description.kind}")
            assert any(p.description for p in description.parameters)


def test_a_method_with_types_defaults_ranges_source_and_checkpoint() -> None:
    (mixture,) = describe("mixture")
    keys = {p.name: p for p in mixture.parameters}
    assert (keys["steps"].type, keys["steps"].default, keys["steps"].range) == (
        "integer",
        20,
        "1 to 1000",
    )
    assert keys["background_overlap"].range == "0 to 0.9"
    assert keys["background_weight"].range == "more than 0"
    assert keys["mask"].type == "box | gaussian | quartic | constant"
    assert keys["window"].type == "integer | null"
    assert keys["guidance_interval"].type == "[number, number]"
    assert {"arXiv 2302.02412", "arXiv 2404.07724"} <= set(mixture.sources)
    assert mixture.checkpoints == [
        "pipeline.model, synthgen-tiny unless given: embedded checkpoint, folder, or Hugging Face id"
    ]
    assert any("1708.01642" in source for source in describe("paste")[0].sources)
    recipe = describe("mixture-sd15")[0]
    assert (recipe.kind, recipe.values["method"], recipe.checkpoints) == (
        "pipeline",
        "mixture",
        [recipe.values["model"]],
    )


def test_inner_keys_are_told_with_their_own_ranges() -> None:
    keys = {p.name: p for p in describe("100dogs")[0].parameters}
    kinds = {d.kind for d in describe("100dogs")}
    assert kinds == {"layout", "job"}
    keys = {p.name: p for d in describe("100dogs") if d.kind == "job" for p in d.parameters}
    assert keys["output.quality"].range == "1 to 100"
    assert (keys["scene.camera.jpeg.quality"].range, keys["scene.camera.exposure.stops"].range) == (
        "1 to 100",
        "-6 to 6",
    )
