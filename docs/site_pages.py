"""The pages of the site that nobody writes: what the code says of itself, and texts that stand elsewhere in the repository."""

import argparse
import os
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

from synthgen import cli, registry
from synthgen.config import Job, OutputSpec
from synthgen.scenes.scene import SceneSpec

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "index.md": "README.md",
    "models.md": "synthgen/weights/README.md",
    "notice.md": "NOTICE",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")
NOT_SHOWN = {
    "assets",
    "data",
    "export",
}  # scripts that drew what ships, and the former places of public names
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to those of docs/."""
    for uri, text in pages():
        files.append(File.generated(config, uri, content=text))
    return files


def pages() -> Iterator[tuple[str, str]]:
    """Path in the site and Markdown of each page."""
    for uri, path in ELSEWHERE.items():
        text = (ROOT / path).read_text()
        yield uri, text if path.endswith(".md") else f"# Notices\n\n```text\n{text}```\n"
    yield "reference/commands.md", commands_page()
    yield "reference/jobs.md", jobs_page()
    yield "reference/python/index.md", python_page()
    for name in modules():
        yield f"reference/python/{name}.md", f"# {name}\n\n::: {name}\n"


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make links hold that are written for the repository; add to a method's page what the code and the table say of it."""
    uri = page.file.src_uri
    parts = FENCED.split(markdown)  # every other part is code
    text = "".join(
        part if i % 2 else LINK.sub(lambda m: moved(m, uri), part) for i, part in enumerate(parts)
    )
    return text + method_facts(Path(uri).stem) if dirname(uri) == "methods" else text


def moved(link: re.Match[str], uri: str) -> str:
    """A link to a file of the repository as one to its page in the site."""
    target = normpath(join(dirname(ELSEWHERE.get(uri, f"docs/{uri}")), link[2]))
    named = {path: page for page, path in ELSEWHERE.items()}.get(
        target, target.removeprefix("docs/")
    )
    return f"{link[1]}{relpath(named, dirname(uri) or '.')}{link[3] or ''})"


def commands_page() -> str:
    """Every command's own help, and the keys of its `--json`."""
    os.environ["COLUMNS"] = "110"  # argparse wraps its help to this
    parsers = next(
        a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)
    ).choices
    text = "# Commands\n\nExit status: 0 done, 1 faults or failure, 2 bad input, 130 stopped with Ctrl-C, 143 with SIGTERM.\n"
    for name, sub in parsers.items():
        keys = str(sub.get_default("command").__doc__)
        text += f"\n## synthgen {name}\n\n```text\n{sub.format_help()}```\n\n{keys}\n"
    return text


def jobs_page() -> str:
    """Every key of a job file, and of what it names."""
    text = "# Keys of jobs and recipes\n\nAny of them can be set on the command line: `layout.size='[80, 120]'`.\n"
    for title, spec in (("A job", Job), ("`output`", OutputSpec), ("`scene`", SceneSpec)):
        text += f"\n## {title}\n\n{keys_table(spec)}"
    for kind, title in (
        ("sampler", "`layout`"),
        ("verifier", "`verify`"),
        ("task", "A training job:"),
    ):
        for name in registry.names(kind):
            spec = registry.spec_class(kind, name)
            text += f"\n## {title} `{kind}: {name}`\n\n{spec.__doc__.strip()}\n\n{keys_table(spec)}"
    return text + "\nThose of `pipeline` are on the pages of the [methods](../methods.md).\n"


def keys_table(spec: type[BaseModel]) -> str:
    """Key, type, default and description of each field."""
    schema = spec.model_json_schema()
    text = "| key | is | default | |\n| --- | --- | --- | --- |\n"
    for name, field in schema["properties"].items():
        default = (
            f"`{field['default']}`"
            if "default" in field
            else ""
            if name in schema.get("required", ())
            else "`{}`"
        )
        said = field.get("description", "").replace("|", "\\|")
        text += f"| `{name}` | {kind_of(field, schema)} | {default} | {said} |\n"
    return text


def kind_of(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """The type of a field, and its bounds, in words."""
    if "$ref" in field:
        found = schema["$defs"][field["$ref"].split("/")[-1]]
        return kind_of({k: v for k, v in found.items() if k != "description"}, schema)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind_of(option, schema) for option in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " or ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field)
    words = {
        "array": "list",
        "object": "mapping",
        "string": "text",
        "null": "null",
        "boolean": "true or false",
    }
    return " ".join(
        filter(None, [words.get(field.get("type", ""), field.get("type", "any")), limits])
    )


def method_facts(method: str) -> str:
    """What is known of a method elsewhere: its row of the overview, its recipes, its keys, its rows of the measured table."""
    overview = (ROOT / "docs/methods.md").read_text().splitlines()
    start = next(i for i, line in enumerate(overview) if line.startswith("| method, dogs |"))
    rows = [line for line in overview if line.startswith(f"| {method}, ")]
    measured = "\n".join(
        [
            "## Measured",
            "",
            *overview[start : start + 2],
            *rows,
            "",
            "See [methods](../methods.md#measured).",
        ]
    )
    recipes = [
        p
        for p in sorted((ROOT / "pipelines").glob("*.yaml"))
        if f"method: {method}\n" in p.read_text()
    ]
    shown = "\n".join(f"`pipelines/{p.name}`\n\n```yaml\n{p.read_text()}```\n" for p in recipes)
    keys = keys_table(registry.spec_class("method", method))
    return f"\n{measured if rows else ''}\n\n## Recipes\n\n{shown}\n## Keys of `pipeline`\n\n{keys}"


def python_page() -> str:
    """Return the page of the public names, and of the packages and modules that they come from."""
    text = "# Python\n\nWhat a program uses ([from Python](../../python.md)):\n\n::: synthgen\n"
    text += "    options: {show_root_heading: false, show_root_toc_entry: false, show_submodules: false}\n"
    text += "\n## The modules\n\n| | |\n| --- | --- |\n"
    for name in modules():
        summary = str(import_module(name).__doc__).splitlines()[0]
        text += f"| [`{name}`]({name}.md) | {summary} |\n"
    return text


def modules() -> list[str]:
    """The packages and modules of the reference, each a page."""
    inside = (ROOT / "synthgen").iterdir()
    found = {p.stem for p in inside if (p / "__init__.py").is_file() or p.suffix == ".py"}
    return sorted(f"synthgen.{name}" for name in found - NOT_SHOWN if name[0] != "_")
