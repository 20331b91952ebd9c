"""Hooks of mkdocs: the pages that are generated from the code, and those outside docs/."""

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
METHODS = "docs/explanation/methods.md"
# Page of the site by the file of the repository that it shows.
PAGES_BY_FILE = {
    "README.md": "index.md",
    "synthgen/weights/README.md": "models.md",
    "NOTICE": "notice.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
FILES_BY_PAGE = {page: file for file, page in PAGES_BY_FILE.items()}
# Scripts that rendered the shipped cut-outs, and the former places of public names.
HIDDEN_MODULES = {"assets", "data", "export"}
LINK = re.compile(r"(\]\()([^)#:\s]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {
    "array": "list",
    "object": "mapping",
    "string": "text",
    "null": "null",
    "boolean": "true or false",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of docs/."""
    for uri, text in generate_pages():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links from the repository's paths to the site's, and append what is generated."""
    uri = page.file.src_uri
    text = ""
    for part in FENCED.split(markdown):
        if part.startswith("```"):
            text += part
        else:
            text += LINK.sub(lambda link: relink(link, uri), part)
    if uri == "reference/commands.md":
        text += generate_help()
    elif uri == "reference/python.md":
        text += generate_modules_table()
    elif dirname(uri) == "reference/methods":
        text += generate_method_facts(Path(uri).stem)
    return text


def generate_pages() -> Iterator[tuple[str, str]]:
    """Yield the path in the site and the Markdown of each generated page."""
    for file, uri in PAGES_BY_FILE.items():
        text = (ROOT / file).read_text()
        if not file.endswith(".md"):
            text = f"# Notices\n\n```text\n{text}```\n"
        yield uri, text
    yield "reference/jobs.md", generate_jobs_page()
    for name in list_modules():
        yield f"reference/python/{name}.md", f"# {name}\n\n::: {name}\n"


def relink(link: re.Match[str], uri: str) -> str:
    """Return a link to a file of the repository as a link to its page in the site."""
    file = FILES_BY_PAGE.get(uri, f"docs/{uri}")
    target = normpath(join(dirname(file), link[2]))
    page = PAGES_BY_FILE.get(target, target.removeprefix("docs/"))
    return f"{link[1]}{relpath(page, dirname(uri) or '.')}{link[3] or ''})"


def generate_help() -> str:
    """Return the help of every command, and the keys of its `--json`."""
    os.environ["COLUMNS"] = "100"  # argparse wraps the help to this width
    text = ""
    for action in cli.parser()._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for name, parser in action.choices.items():
            keys = str(parser.get_default("command").__doc__)
            text += f"\n## synthgen {name}\n\n```text\n{parser.format_help()}```\n\n{keys}\n"
    return text


def generate_jobs_page() -> str:
    """Return the page of all keys of job files and recipes."""
    text = "# Keys of jobs and recipes\n\n"
    text += "This page lists every key of a job file and of the recipes that it names. "
    text += "Each key can be set on the command line: `layout.size='[80, 120]'`.\n"
    for title, spec in (("A job", Job), ("`output`", OutputSpec), ("`scene`", SceneSpec)):
        text += f"\n## {title}\n\n{generate_keys_table(spec)}"
    kinds = {"sampler": "`layout`", "verifier": "`verify`", "task": "A training job:"}
    for kind, title in kinds.items():
        for name in registry.list_names(kind):
            spec = registry.load_spec_class(kind, name)
            text += f"\n## {title} `{kind}: {name}`\n\n{spec.__doc__.strip()}\n\n"
            text += generate_keys_table(spec)
    link = "[method](../explanation/methods.md)"
    return text + f"\nThe keys of `pipeline` are on the page of each {link}.\n"


def generate_keys_table(spec: type[BaseModel]) -> str:
    """Return a table with key, type, default and description of each field of a spec."""
    schema = spec.model_json_schema()
    text = "| key | type | default | description |\n| --- | --- | --- | --- |\n"
    for name, field in schema["properties"].items():
        if "default" in field:
            default = f"`{field['default']}`"
        elif name in schema.get("required", ()):
            default = ""
        else:
            default = "`{}`"
        description = field.get("description", "").replace("|", "\\|")
        text += f"| `{name}` | {describe_type(field, schema)} | {default} | {description} |\n"
    return text


def describe_type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the type of a field and its bounds in words."""
    if "$ref" in field:
        definition = schema["$defs"][field["$ref"].split("/")[-1]]
        return describe_type(definition, schema)
    if "anyOf" in field:
        options = [describe_type(option, schema) for option in field["anyOf"]]
        return " or ".join(dict.fromkeys(options))
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field.get("type", "any")
    bounds = [f"{sign} {field[key]:g}" for key, sign in BOUNDS.items() if key in field]
    return " ".join([TYPES.get(kind, kind), ", ".join(bounds)]).strip()


def generate_method_facts(method: str) -> str:
    """Return a method's rows of the measured table, its recipes and its keys."""
    overview = (ROOT / METHODS).read_text().splitlines()
    rows = [line for line in overview if line.startswith(f"| {method}, ")]
    text = ""
    if rows:
        (start, *_) = [i for i, row in enumerate(overview) if row.startswith("| method, dogs |")]
        table = "\n".join([*overview[start : start + 2], *rows])
        link = "[methods](../../explanation/methods.md#measured)"
        text += f"\n## Measured\n\n{table}\n\nThe columns are explained in {link}.\n"
    text += "\n## Recipes\n"
    for path in sorted((ROOT / "pipelines").glob("*.yaml")):
        recipe = path.read_text()
        if f"method: {method}\n" in recipe:
            text += f"\n`pipelines/{path.name}`\n\n```yaml\n{recipe}```\n"
    keys = generate_keys_table(registry.load_spec_class("method", method))
    return f"{text}\n## Keys of `pipeline`\n\n{keys}"


def generate_modules_table() -> str:
    """Return the documentation of the public names, and a table of all modules."""
    text = "\n## The public names\n\n::: synthgen\n    options:\n"
    text += "      show_root_heading: false\n      show_root_toc_entry: false\n"
    text += "      show_submodules: false\n\n"
    text += "## The modules\n\n| module | contents |\n| --- | --- |\n"
    for name in list_modules():
        summary = str(import_module(name).__doc__).splitlines()[0]
        text += f"| [`{name}`](python/{name}.md) | {summary} |\n"
    return text


def list_modules() -> list[str]:
    """Return the packages and modules that have a page in the reference."""
    names = []
    for path in (ROOT / "synthgen").iterdir():
        is_module = path.suffix == ".py" or (path / "__init__.py").is_file()
        if is_module and path.stem not in HIDDEN_MODULES and not path.stem.startswith("_"):
            names.append(f"synthgen.{path.stem}")
    return sorted(names)
