"""`synthgen describe` prints descriptions, and completes names for the shell."""

import json
import os
import subprocess
import sys

import pytest

from synthgen import cli
from synthgen.config.describe import describe


def test_describe_prints_keys_and_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "scatter", "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)["descriptions"]
    assert (data["kind"], data["name"]) == ("sampler", "scatter")
    text = "\n".join(describe("train-tiny")[0].lines())
    assert "  seed" in text
    assert "default 0\n" in text
    assert {"name", "type", "default", "required", "range", "description"} == set(
        data["parameters"][0]
    )
    assert cli.main(["describe", "scater"]) == 2
    assert "did you mean 'scatter'?" in capsys.readouterr().err


def test_the_shell_is_told_what_could_come_next() -> None:
    line = "synthgen describe regional"
    shell = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    code = (
        "import os,sys; sys.argv=['synthgen']; os.dup2(1, 8); "
        "from synthgen.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **shell}, capture_output=True, text=True
    )
    assert done.stdout.split("\n") == [
        "regional-attention-sd15",
        "regional-attention-sd15-lcm",
        "regional-attention-sd21",
        "regional-attention-sdxl",
        "regional-attention-sdxl-lcm",
        "regional-attention-tiny",
        "regional-attention-turbo",
        "regional_attention",
    ]
