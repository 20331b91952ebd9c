"""The output, the exit status and --json of the commands."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from synthgen import cli
from synthgen.cli.command import NumbersAction
from synthgen.dataset.check import check_sample
from tests.config.test_validation import GOOD


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    """Run a command with --json; return its exit status and the JSON object."""
    status = cli.main([*argv, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_run_check_and_finalize_report_the_same_dataset(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(job_file.parent / "out")
    status, data = run_json(capsys, "run", str(job_file))
    assert status == 0
    figures = {"images", "boxes", "shards", "bytes", "verified", "complete", "coco_files"}
    assert set(data) == {"output", *figures, "made", "seconds", "interrupted", "failed"}
    assert (data["output"], data["made"]) == (out, 6)
    assert (data["images"], data["boxes"], data["shards"]) == (6, 24, 3)
    assert (data["complete"], data["interrupted"]) == (True, False)
    assert (Path(out) / "report.html").is_file()
    assert run_json(capsys, "check", out) == (
        0,
        {"ok": True, "faults": [], "images": 6, "boxes": 24, "shards": 3},
    )
    status, data = run_json(capsys, "finalize", out)
    assert (status, data["images"], data["complete"]) == (0, 6, True)
    assert cli.main(["run", str(job_file)]) == 0
    assert "6 images, 24 boxes, 3 shards, all existed already" in capsys.readouterr().out


def test_check_exits_1_and_lists_the_faults(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar = dataset / "shards/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert cli.main(["check", str(dataset)]) == 1
    assert "shards/000001.json: no valid marker" in capsys.readouterr().out
    status, data = run_json(capsys, "check", str(dataset))
    assert (status, data["ok"]) == (1, False)


def test_a_changed_seed_exits_2_naming_it(
    job_file: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(job_file), "seed=9"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        f"synthgen: {dataset} holds another job: seed: was 3, is 9. Give another output.path"
    )
    assert captured.err.count("\n") == 1


def test_a_missing_model_exits_2_with_one_line(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", str(job_file), "pipeline={method: mixture, model: nosuchmodel}"]) == 2
    captured = capsys.readouterr()
    assert "pipeline.model: model 'nosuchmodel': no folder of that name" in captured.err
    assert captured.err.count("\n") == 1
    assert not (job_file.parent / "out").exists()


def test_preview_draws_the_layouts(
    job_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preview.png"
    status, data = run_json(capsys, "preview", str(job_file), "-n", "3", "-o", str(path))
    assert (status, data["layouts"], data["boxes"], data["path"]) == (0, 3, 12, str(path))
    assert 0 < data["coverage"] < 1
    with Image.open(path) as sheet:
        assert len(set(sheet.get_flattened_data())) > 3
    assert cli.main(["preview", str(job_file), "-n", "0"]) == 2


@pytest.mark.parametrize(("category", "doubts"), [("dog", 0), ("horse", 1)])
def test_a_category_that_the_checkpoint_does_not_know_is_warned_of(
    category: str,
    doubts: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["preview", "100dogs", f"layout.objects={{{category}: 2}}"]) == 0
    warning = "synthgen-tiny has never seen 'horse'; it knows dog, cat, ball, tree"
    assert capsys.readouterr().err.count(warning) == doubts


def test_plan_writes_nothing(job_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, data = run_json(capsys, "plan", str(job_file), "images=1000")
    assert (status, data["images"], data["shards"], data["device"]) == (0, 1000, 500, "cpu")
    assert 0 < data["seconds_per_image"] < 60
    seconds = data["seconds_per_image"] * 1000 / data["workers"] + data["load_seconds"]
    assert data["hours"] == pytest.approx(seconds / 3600, abs=0.01)
    assert data["gigabytes"] > 0
    assert not (job_file.parent / "out").exists()


def test_list_names_samplers_methods_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    _, data = run_json(capsys, "list")
    samplers = {"coco", "crowd", "file", "fit", "grid", "pack", "perspective", "scatter"}
    assert samplers <= set(data["samplers"])
    assert {"canvas", "layered", "mixture", "paste", "tiling"} <= set(data["methods"])
    assert all(data["methods"].values())
    assert "100dogs" in data["jobs"]
    assert "100dogs" in data["layouts"]
    assert {"mixture-tiny", "mixture-sd15", "paste"} <= set(data["pipelines"])


@pytest.mark.parametrize(
    "command",
    ["check", "evaluate", "export --to coco x", "finalize", "merge --to x", "repair", "report"],
)
def test_a_folder_without_a_dataset_exits_2_with_one_line(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    name, *options = command.split()
    assert cli.main([name, "empty", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("synthgen: ")
    assert captured.err.count("\n") == 1
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_help_and_config_errors_load_nothing_heavy(tmp_path: Path) -> None:
    """They take half a second. The test checks which modules are loaded rather than the time."""
    (tmp_path / "job.yaml").write_text(GOOD.replace("images: 4", "images: x"))
    for argv in (["--help"], ["run", str(tmp_path / "job.yaml")]):
        code = (
            "import sys\nfrom synthgen.cli.main import main\n"
            f"try: main({argv!r})\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'ray', 'pyarrow', 'transformers', 'huggingface_hub'}\n"
            "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
        )
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert time.perf_counter() - began < 10
        assert done.stderr.endswith("[]\n")


def test_overrides_may_precede_and_follow_options(
    job_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, data = run_json(
        capsys, "run", str(job_file), "images=2", "--overwrite", "output.shard_size=1"
    )
    assert (status, data["images"], data["shards"]) == (0, 2, 2)
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", str(job_file), "--overwrite", "nonsense"])
    assert "unrecognized arguments: nonsense" in capsys.readouterr().err


def test_without_arguments_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "generate the dataset of a job" in capsys.readouterr().err


def test_overrides_may_follow_the_numbers_of_an_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["benchmark", "--real", "a", "--synthetic", "b", "-o", "c"]
    args = cli.parse(
        [*argv, "--ratios", "0.25", "0.5", "steps=1", "crop=64", "--seeds", "1", "steps=2"]
    )
    assert (args.ratios, args.overrides) == ([0.25, 0.5], ["steps=1", "crop=64", "steps=2"])
    args = cli.parse([*argv, "steps=3", "--ratios", "0.5", "steps=1"])
    assert (args.ratios, args.overrides) == ([0.5], ["steps=3", "steps=1"])
    assert cli.parse(argv).ratios == [0.5]
    messages = {
        "half": "invalid float value: 'half'",
        "steps=1": "expected at least one number",
    }
    for text, message in messages.items():
        with pytest.raises(SystemExit, match="2"):
            cli.parse([*argv, "--ratios", text])
        assert message in capsys.readouterr().err


def test_an_option_with_several_values_leaves_overrides_alone() -> None:
    """argparse gives such an option all that follows, so it needs `NumbersAction`."""
    commands: dict[str, argparse.ArgumentParser] = {}
    for action in cli.parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            commands.update(action.choices)
    assert commands
    for name, sub in commands.items():
        if not any(action.dest == "overrides" for action in sub._actions):
            continue
        for action in sub._actions:
            if action.option_strings and action.nargs in ("+", "*", "?"):
                assert isinstance(action, NumbersAction), name


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report --most 0", "--most: 0 must be at least 1"),
        ("evaluate --limit -1", "--limit: -1 must be at least 1"),
        ("evaluate --threshold nan", "--threshold: nan must be in [0, 1]"),
        ("export --to coco x --val nan", "--val: nan must be from 0 to 1"),
    ],
)
def test_numbers_out_of_range_exit_2(
    command: str, message: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *options = command.split()
    assert cli.main([name, str(dataset), *options]) == 2
    assert message in capsys.readouterr().err


def test_messages_have_no_addresses_in_memory(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_first_image(dataset)
    assert cli.main(["report", str(dataset)]) == 2
    printed = capsys.readouterr().err
    message = "image does not decode: cannot identify image file"
    assert printed == f"synthgen: sample '000000000': {message}\n"
    faults = list(check_sample({"image_sha256": ""}, b"no image", b"{}"))
    assert faults[0] == message


def damage_first_image(out: Path) -> None:
    """Overwrite the first image, as a fault of a disk would."""
    tar = out / "shards/000000.tar"
    data = bytearray(tar.read_bytes())
    data[512:1024] = b"x" * 512
    tar.write_bytes(data)
