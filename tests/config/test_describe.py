"""Descriptions of names are complete and correct."""

from synthgen.cli.describe import all_names
from synthgen.config.describe import describe


def test_everything_that_is_listed_is_described() -> None:
    for name in all_names():
        for description in describe(name):
            assert description.text, name
            assert description.parameters, name
            assert "\n".join(description.lines()).startswith(f"{name}: {description.kind}")
            assert any(p.description for p in description.parameters)


def test_a_method_has_types_defaults_ranges_sources_and_checkpoints() -> None:
    (mixture,) = describe("mixture")
    keys = {p.name: p for p in mixture.parameters}
    steps = keys["steps"]
    assert (steps.type, steps.default, steps.range) == ("integer", 20, "1 to 1000")
    assert keys["background_overlap"].range == "0 to 0.9"
    assert keys["background_weight"].range == "more than 0"
    assert keys["mask"].type == "box | gaussian | quartic | constant"
    assert keys["window"].type == "integer | null"
    assert keys["guidance_interval"].type == "[number, number]"
    assert {"arXiv 2302.02412", "arXiv 2404.07724"} <= set(mixture.sources)
    description = keys["model"].description
    assert description
    assert mixture.checkpoints == [f"pipeline.model, default synthgen-tiny: {description}"]
    assert any("1708.01642" in source for source in describe("paste")[0].sources)
    recipe = describe("mixture-sd15")[0]
    assert (recipe.kind, recipe.values["method"]) == ("pipeline", "mixture")
    assert recipe.checkpoints == [recipe.values["model"]]


def test_keys_of_inner_mappings_have_their_own_ranges() -> None:
    descriptions = {description.kind: description for description in describe("100dogs")}
    assert set(descriptions) == {"layout", "job"}
    keys = {parameter.name: parameter for parameter in descriptions["job"].parameters}
    assert keys["output.quality"].range == "1 to 100"
    assert keys["scene.camera.jpeg.quality"].range == "1 to 100"
    assert keys["scene.camera.exposure.stops"].range == "-6 to 6"
