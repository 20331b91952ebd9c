"""Does it help *my* mAP? One detector, trained on real scenes, on synthetic ones, and on both, held against real pictures.

`Benchmark` says what is compared; `run.py` trains and evaluates, `summary.py` and `plot.py` tell what came out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthgen.config import ConfigError, load_training
from synthgen.dataset.info import DatasetInfo, read_info
from synthgen.storage.location import open_store
from synthgen.training.base import TaskSpec


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        share: of synthetic scenes among those that batches are drawn from.
    """

    name: str
    share: float


@dataclass(frozen=True)
class Run:
    """One training of a row."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row.name.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Benchmark:
    """What is compared: datasets, shares, and the detector's training job.

    Attributes:
        real, synthetic: output folders of datasets.
        test: a dataset of real pictures that nothing is trained on; None: of `real`, the samples whose index is a multiple
            of `hold_out`, which nothing is trained on then.
        ratios: shares of synthetic scenes in the mixed rows.
        seeds: trainings of each row.
        job: training job of the detector, and `key=value` overrides of it.
    """

    real: Path
    synthetic: Path
    out: Path
    test: Path | None = None
    hold_out: int = 5
    ratios: tuple[float, ...] = (0.5,)
    seeds: int = 3
    job: str = "train-detector"
    overrides: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        mixed = [Row(f"mixed {ratio:g}", ratio) for ratio in sorted(set(self.ratios))]
        return [Row("real", 0.0), Row("synthetic", 1.0), *mixed]

    def runs(self) -> Iterator[Run]:
        """Seed by seed, so that all rows can be compared early."""
        return (Run(row, seed) for seed in range(self.seeds) for row in self.rows())

    def datasets(self) -> dict[str, Path]:
        named = {"real": self.real, "synthetic": self.synthetic, "test": self.test}
        return {name: path for name, path in named.items() if path is not None}

    def check(self) -> None:
        """Say what is wrong, all at once.

        Raises:
            ConfigError: with every problem.
        """
        infos = {name: read_info(open_store(path)) for name, path in self.datasets().items()}
        problems = [
            f"--{name}: {str(self.datasets()[name])!r} is not a dataset of synthgen (no readable dataset.json)"
            for name, info in infos.items()
            if info is None
        ]
        if self.test is not None and self.test.resolve() in (
            self.real.resolve(),
            self.synthetic.resolve(),
        ):
            problems.append(
                "--test: is trained on too; leave it out, and a part of --real is held out"
            )
        if wrong := [r for r in self.ratios if not 0 < r < 1]:
            problems.append(
                f"--ratios: {wrong[0]:g} is not between 0 and 1; these two are the rows real and synthetic"
            )
        problems += [
            f"--{k}: {v} must be at least {least}" for k, v, least in self.numbers() if v < least
        ]
        if not problems:
            problems = self.check_categories(
                {name: info for name, info in infos.items() if info is not None}
            )
        if problems:
            raise ConfigError([f"command line: {problem}" for problem in problems])

    def numbers(self) -> list[tuple[str, int, int]]:
        return [("seeds", self.seeds, 1), ("hold-out", self.hold_out, 2)]

    def check_categories(self, infos: dict[str, DatasetInfo]) -> list[str]:
        real = infos["real"].category_ids
        return [
            f"--{name}: has none of the categories of --real ({', '.join(real)}) but {', '.join(info.category_ids)}"
            for name, info in infos.items()
            if not set(real) & set(info.category_ids)
        ]

    def categories(self) -> list[str]:
        """The real pictures' categories: what is trained and measured."""
        info = read_info(open_store(self.real))
        assert info is not None
        return list(info.category_ids)

    def training(self, run: Run) -> TaskSpec:
        """The training job of one run.

        Raises:
            ConfigError: the job or an override is wrong.
        """
        share = run.row.share
        data = {
            "shards": str(self.synthetic if share == 1 else self.real),
            "hold_out": self.hold_out if self.test is None and share < 1 else None,
            "mixed_with": str(self.synthetic) if 0 < share < 1 else None,
            "mixed_share": share,
        }
        keys: dict[str, Any] = {f"data.{key}": value for key, value in data.items()}
        keys |= {"seed": run.seed, "categories": self.categories(), "name": run.name}
        keys["output.path"] = str(self.out / "runs" / run.name)
        if (task := load_training(self.job).task) != "detector":
            raise ConfigError(
                [
                    f"command line: --detector: {self.job} is a job of the task {task}, not of detector"
                ]
            )
        return load_training(
            self.job,
            [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in keys.items())],
        )
