"""The rooms of the package, and which rooms each may import.

Imports inside functions count like those at the top of a file.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "synthgen"
ENGINE_ROOMS = "storage dataset formats layouts scenes pipelines verification config"
MAY_IMPORT = {
    # A room may import the rooms that are named here, which are above it in this table. Modules
    # beside the rooms (errors, spec, …) may be imported by all. A spec names its implementation as
    # a text, which is not an import, so a job is read without torch.
    "storage": "",  # bytes by name, without knowledge of datasets
    "dataset": "storage",  # files and labels, without knowledge of how images are generated
    "formats": "storage dataset",
    "layouts": "formats",  # some samplers read annotations of other programs
    "scenes": "layouts",
    "pipelines": "storage dataset.categories layouts scenes",  # no jobs, no datasets, no Ray
    "verification": "layouts scenes pipelines",
    "training": "storage dataset formats layouts scenes pipelines verification",
    "speech": "pipelines",  # speech models are located like checkpoints
    "config": "storage dataset layouts scenes pipelines verification training speech",
    "engine": ENGINE_ROOMS,
    "report": "storage dataset layouts",
    "evaluation": "storage dataset layouts scenes verification training config",
    "cli": f"{ENGINE_ROOMS} training speech engine report evaluation",
}
BESIDE = {
    "__init__": "",
    "__main__": "cli",
    "data": "dataset",
    "export": "formats",
}
"""Modules beside the rooms that may import rooms, and that no room imports."""
ONLY_IN = {
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
"""Libraries that take seconds to import, and the modules and rooms that may import them."""


def module_name(path: Path) -> str:
    """Return the dotted name of a file, without the prefix `synthgen.`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def list_imports(module: str, for_types: bool = True) -> Iterator[str]:
    """Yield the dotted name of each module that a file imports, anywhere in it.

    Args:
        for_types: whether to include imports under `if TYPE_CHECKING`.
    """
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    skipped: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and not for_types:
            skipped.update(ast.walk(node))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node not in skipped:
            assert node.level == 0, f"{module}: use absolute imports"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("synthgen.") in FILES else str(node.module)
        elif isinstance(node, ast.Import) and node not in skipped:
            yield from (alias.name for alias in node.names)


def list_own_imports(module: str, for_types: bool = True) -> set[str]:
    """Return the modules of synthgen that a file imports, without the prefix `synthgen.`."""
    names = list_imports(module, for_types)
    return {name.removeprefix("synthgen.") for name in names if name.startswith("synthgen.")}


def room_of(module: str) -> str:
    """Return the room of a module, or the module itself if it is beside the rooms."""
    return module.partition(".")[0]


def is_in(module: str, places: set[str]) -> bool:
    """Return whether a module is one of these places, or inside one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def test_no_imports_are_circular() -> None:
    graph = {module: list_own_imports(module, for_types=False) - {module} for module in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


def test_every_room_is_in_the_table() -> None:
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} - {"assets"}
    assert rooms == set(MAY_IMPORT)


def test_rooms_import_only_rooms_above_them() -> None:
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert {room_of(place) for place in allowed.split()} <= above
        above.add(name)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(name: str) -> None:
    allowed = {name, *MAY_IMPORT[name].split()}
    beside = {module for module in FILES if room_of(module) not in MAY_IMPORT} - set(BESIDE)
    for module in FILES:
        if room_of(module) == name:
            wrong = {
                other for other in list_own_imports(module) if not is_in(other, allowed | beside)
            }
            assert wrong == set(), (
                f"{module} may not import them: move shared code to a room above, or beside the "
                "rooms"
            )


def test_modules_beside_the_rooms_import_no_rooms() -> None:
    for module in FILES:
        if room_of(module) not in MAY_IMPORT and module != "__init__":
            allowed = set(BESIDE.get(module, "").split())
            imported = {room_of(other) for other in list_own_imports(module)}
            assert imported & set(MAY_IMPORT) <= allowed, module


def test_a_spec_names_an_implementation_of_its_own_room() -> None:
    for module, path in FILES.items():
        for named in re.findall(r'"synthgen\.([\w.]+):\w+"', path.read_text(encoding="utf-8")):
            assert room_of(named) == room_of(module), f"{module} names {named}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_slow_library_is_imported_only_by_its_users(library: str) -> None:
    for module in FILES:
        libraries = {room_of(name) for name in list_imports(module)}
        assert library not in libraries or is_in(module, ONLY_IN[library]), module


def test_every_package_has_a_docstring() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_every_path_in_contributing_exists() -> None:
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
