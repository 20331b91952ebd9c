"""A comparison of detectors trained on real scenes, on synthetic ones, and on both.

All are evaluated on real images. `Benchmark` defines what is compared; `run.py` trains and
evaluates, `summary.py` and `plot.py` present the results.
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

LEAST_SEEDS = 1
LEAST_HOLD_OUT = 2


@dataclass(frozen=True)
class Row:
    """One mixture of training data.

    Attributes:
        share: the share of synthetic scenes in the training data, 0 to 1.
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
        out: folder for the trainings and results.
        test: a dataset of real images that no detector is trained on. If it is None, the samples
            of `real` whose index is a multiple of `hold_out` are held out of training instead.
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
        """Return the rows: real, synthetic, and the mixtures by share."""
        mixed = [Row(f"mixed {ratio:g}", ratio) for ratio in sorted(set(self.ratios))]
        return [Row("real", 0.0), Row("synthetic", 1.0), *mixed]

    def runs(self) -> Iterator[Run]:
        """Yield the trainings seed by seed, so that all rows can be compared early."""
        for seed in range(self.seeds):
            for row in self.rows():
                yield Run(row, seed)

    def datasets(self) -> dict[str, Path]:
        """Return the folders of the datasets by the name of their option."""
        datasets = {"real": self.real, "synthetic": self.synthetic}
        if self.test is not None:
            datasets["test"] = self.test
        return datasets

    def check(self) -> None:
        """Check datasets and numbers.

        Raises:
            ConfigError: there are problems; the message lists all of them.
        """
        infos = {}
        problems = []
        for name, path in self.datasets().items():
            info = read_info(open_store(path))
            if info is None:
                problems.append(
                    f"--{name}: {str(path)!r} is not a dataset of synthgen "
                    "(no readable dataset.json)"
                )
            else:
                infos[name] = info
        problems += self._check_options()
        if not problems:
            problems = self._check_categories(infos)
        if problems:
            raise ConfigError([f"command line: {problem}" for problem in problems])

    def _check_options(self) -> list[str]:
        """Return the problems of the options, without reading a dataset."""
        problems = []
        trained_on = (self.real.resolve(), self.synthetic.resolve())
        if self.test is not None and self.test.resolve() in trained_on:
            problems.append("--test: is trained on too; omit it, and a part of --real is held out")
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                problems.append(
                    f"--ratios: {ratio:g} is not between 0 and 1; "
                    "these two are the rows real and synthetic"
                )
                break
        if self.seeds < LEAST_SEEDS:
            problems.append(f"--seeds: {self.seeds} must be at least {LEAST_SEEDS}")
        if self.hold_out < LEAST_HOLD_OUT:
            problems.append(f"--hold-out: {self.hold_out} must be at least {LEAST_HOLD_OUT}")
        return problems

    def _check_categories(self, infos: dict[str, DatasetInfo]) -> list[str]:
        """Return a problem for each dataset that shares no category with the real one."""
        real = infos["real"].category_ids
        problems = []
        for name, info in infos.items():
            if not set(real) & set(info.category_ids):
                problems.append(
                    f"--{name}: has none of the categories of --real ({', '.join(real)}) "
                    f"but {', '.join(info.category_ids)}"
                )
        return problems

    def categories(self) -> list[str]:
        """Return the categories of the real images, which are trained and evaluated."""
        info = read_info(open_store(self.real))
        assert info is not None
        return list(info.category_ids)

    def training(self, run: Run) -> TaskSpec:
        """Return the training job of one run.

        Raises:
            ConfigError: the job or an override is wrong.
        """
        task = load_training(self.job).task
        if task != "detector":
            problem = f"--detector: {self.job} is a job of the task {task}, not of detector"
            raise ConfigError([f"command line: {problem}"])
        share = run.row.share
        keys: dict[str, Any] = {
            "data.shards": str(self.synthetic if share == 1 else self.real),
            "data.hold_out": self.hold_out if self.test is None and share < 1 else None,
            "data.mixed_with": str(self.synthetic) if 0 < share < 1 else None,
            "data.mixed_share": share,
            "seed": run.seed,
            "categories": self.categories(),
            "name": run.name,
            "output.path": str(self.out / "runs" / run.name),
        }
        overrides = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
        return load_training(self.job, [*self.overrides, *overrides])
