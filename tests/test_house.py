"""The rooms of the package: who may import whom. Imports inside functions count as those at the top of a file do."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "synthgen"
MAY_IMPORT = {
    # A room may import rooms above it in this table, and of them those named. What stands beside the rooms (errors, spec, …) is
    # everyone's. A spec names its implementation by a text, which is no import: reading a job loads no torch.
    "storage": "",  # bytes under names: knows nothing of datasets
    "dataset": "storage",  # knows files and labels, and nothing of how images are generated
    "formats": "storage dataset",
    "layouts": "formats",  # samplers that replay or fit annotations read them as `import` does
    "scenes": "layouts",
    "pipelines": "dataset.categories layouts scenes",  # annotation readers are trained with ids of categories; no jobs, files, Ray
    "verification": "layouts scenes pipelines",
    "training": "storage dataset formats layouts scenes pipelines verification",
    "speech": "pipelines",  # a model of speech is found and its device chosen as a checkpoint's
    "config": "storage dataset layouts scenes pipelines verification training speech",  # a job is made of their specs
    "engine": "storage dataset formats layouts scenes pipelines verification config",
    "report": "storage dataset layouts",
    "evaluation": "storage dataset layouts scenes verification training config",  # `benchmark` trains detectors
    "cli": "storage dataset formats layouts scenes pipelines verification training speech config engine report evaluation",
}
BESIDE = {
    "__init__": "",
    "__main__": "cli",
    "data": "dataset",
    "export": "formats",
}  # of which no room imports anything
ONLY_IN = {  # libraries that take seconds to import, and the rooms that know them
    "ray": {"engine"},
    "torch": {
        "dataset.reader",
        "pipelines",
        "verification",
        "training",
        "speech",
        "engine",
        "evaluation",
    },
    "diffusers": {"pipelines", "verification", "training"},
    "transformers": {"pipelines", "verification", "training", "speech", "evaluation"},
}


def module_name(path: Path) -> str:
    """Return the dotted name of a file, without `synthgen` before it."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str, for_types: bool = True) -> Iterator[str]:
    """Yield the dotted name of each module that a file imports, anywhere in it.

    Args:
        for_types: also those that stand under `if TYPE_CHECKING`.
    """
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    skipped: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_types:
            skipped.update(ast.walk(node))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            assert node.level == 0, f"{module}: write the whole name of what is imported"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("synthgen.") in FILES else str(node.module)
        elif isinstance(node, ast.Import) and node not in skipped:
            yield from (alias.name for alias in node.names)


def own_imports(module: str, for_types: bool = True) -> set[str]:
    """Return the modules of synthgen that a file imports, without `synthgen` before them."""
    names = imports(module, for_types)
    return {name.removeprefix("synthgen.") for name in names if name.startswith("synthgen.")}


def room(module: str) -> str:
    """Return the room of a module, or the module where it stands beside the rooms."""
    return module.partition(".")[0]


def is_in(module: str, places: set[str]) -> bool:
    """Tell whether a module is one of these, or in one of these packages."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_nothing_is_imported_in_a_circle() -> None:
    graph = {module: own_imports(module, for_types=False) - {module} for module in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"assets"}
    assert rooms == set(MAY_IMPORT)


def test_the_table_runs_one_way() -> None:
    above: list[str] = []
    for name, allowed in MAY_IMPORT.items():
        assert {room(place) for place in allowed.split()} <= set(above)
        above.append(name)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(name: str) -> None:
    allowed = {name, *MAY_IMPORT[name].split()}
    beside = {module for module in FILES if room(module) not in MAY_IMPORT} - set(BESIDE)
    for module in FILES:
        if room(module) == name:
            wrong = {other for other in own_imports(module) if not is_in(other, allowed | beside)}
            assert wrong == set(), (
                f"{module} may not import them: move what is shared to a room above, or beside the rooms"
            )


def test_what_stands_beside_the_rooms_imports_none() -> None:
    for module in FILES:
        if room(module) not in MAY_IMPORT and module != "__init__":
            allowed = set(BESIDE.get(module, "").split())
            assert {room(other) for other in own_imports(module)} & set(MAY_IMPORT) <= allowed, (
                module
            )


def test_a_spec_names_an_implementation_of_its_own_room() -> None:
    for module, path in FILES.items():
        for named in re.findall(r'"synthgen\.([\w.]+):\w+"', path.read_text(encoding="utf-8")):
            assert room(named) == room(module), f"{module} names {named}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_where_it_is_known(library: str) -> None:
    users = {module for module in FILES for name in imports(module) if room(name) == library}
    assert {module for module in users if not is_in(module, ONLY_IN[library])} == set()


def test_every_package_says_what_it_holds() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_every_place_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tables = text[text.index("## The map of the house") : text.index("## Data and weights")]
    room = ""
    for line in [line for line in tables.splitlines() if line.startswith("|")]:
        for name in re.findall(r"`([\w/]+(?:\.py|/))`", line):
            if "NAME" in name:
                continue
            if line.startswith(f"| `{name}`"):
                room = name
            places = [ROOT / name, ROOT / "synthgen" / name, ROOT / "synthgen" / room / name]
            places.append(ROOT / "synthgen/pipelines/diffusion" / name)
            assert any(place.exists() for place in places), name
