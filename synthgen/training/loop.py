"""The training loop: steps, states to go on from, sheets and curves to look at."""

import gc
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from synthgen.errors import InputError
from synthgen.spec import flat
from synthgen.storage.local import LocalStore, replacing, write_text
from synthgen.storage.lock import Lock
from synthgen.training.base import TaskSpec
from synthgen.training.loss_plot import write_loss_plot

FREE_TO_CHANGE = ("steps", "output.every", "output.path", "data.workers", "data.on_bad", "name")
Report = Callable[[int, float], None]


class ChangedTrainingError(InputError):
    """The output folder holds another training; the message names the keys that differ."""


@dataclass
class TrainResult:
    """What a training did.

    Attributes:
        step: the last one that is done.
        loss: mean of the last 200 steps.
        seconds: of this call.
        figures: what was measured last, on held-out data.
        interrupted: stopped by Ctrl-C; the state is saved.
        skipped: entries of the data that were left out as they cannot be used; listed in `skipped.jsonl`.
    """

    step: int
    loss: float
    seconds: float
    interrupted: bool
    figures: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


class Training:
    """One training in one folder.

    `state.pt` is what a stopped run goes on from, `log.jsonl` has a line a step, `loss.png` and `samples/` show how it
    goes, `tensorboard/` holds the same for TensorBoard, and the result is `checkpoint/`.
    """

    def __init__(self, spec: TaskSpec) -> None:
        torch.manual_seed(spec.seed)
        self.spec, self.out = spec, Path(spec.output.path).absolute()
        precision = spec.mixed_precision if torch.cuda.is_available() else "no"
        self.accelerator = Accelerator(
            mixed_precision=precision, log_with="tensorboard", project_dir=str(self.out)
        )
        diffusers_logging.disable_progress_bar()  # of loading: it takes a second, and its bars cut through that of the steps
        transformers_logging.disable_progress_bar()
        trainee: Any = spec.load()
        self.trainee = trainee.to(self.accelerator.device)
        self.weights = [p for p in self.trainee.parameters() if p.requires_grad]
        self.ema = (
            EMAModel(self.weights, decay=spec.ema, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
            if spec.ema
            else None
        )
        groups = trainee.groups() if hasattr(trainee, "groups") else [{"params": self.weights}]
        optimiser = torch.optim.AdamW(
            groups, lr=spec.learning_rate, weight_decay=spec.weight_decay, betas=(0.9, 0.99)
        )
        self.model, self.optimiser = self.accelerator.prepare(self.trainee, optimiser)
        self.losses: list[float] = []
        self.figures: dict[str, float] = {}

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    def run(self, report: Report | None = None) -> TrainResult:
        """Train from where the folder stands to the last step; `report` gets the step and the mean loss."""
        began, step = time.perf_counter(), self.resume()
        self.accelerator.init_trackers("tensorboard")
        batches = self.trainee.batches(step, self.accelerator.process_index)
        with stop_asked() as asked:
            while step < self.spec.steps and not self.agreed(asked):
                loss = self.step(next(batches), step)
                step += 1
                self.note(step, loss)
                if report and self.is_main:
                    report(step, self.mean_loss())
                if step % self.spec.output.every == 0 or step == self.spec.steps:
                    self.look(step)
        self.part()
        self.finish(step)
        seconds, skipped = time.perf_counter() - began, self.note_skipped()
        return TrainResult(
            step, self.mean_loss(), seconds, step < self.spec.steps, self.figures, skipped
        )

    def agreed(self, asked: list[int]) -> bool:
        """Whether any process was asked to stop: all of them stop after the same step, or the rest would wait for ever."""
        return bool(
            self.accelerator.reduce(torch.tensor(len(asked), device=self.accelerator.device))
        )

    def part(self) -> None:
        """Leave the other processes: what exchanges gradients goes before their group; in the other order torch can hang."""
        self.model = self.trainee
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def finish(self, step: int) -> None:
        """Write the result, or the state that a stopped run goes on from."""
        if step < self.spec.steps:
            self.save(step)
        elif self.is_main:
            with averaged(self.ema, self.weights):
                self.trainee.export(self.out / "checkpoint")

    def step(self, batch: Any, step: int) -> float:
        """One optimiser step; returns the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.spec.learning_rate_at(step) * group.get("rate", 1.0)
        with self.accelerator.autocast():
            loss = self.model(batch)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema:
            self.ema.step(self.weights)
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def note(self, step: int, loss: float) -> None:
        """One line of the log, and one point of TensorBoard's curves."""
        self.losses.append(loss)
        entry = {"loss": loss, "learning_rate": self.spec.learning_rate_at(step - 1)}
        if self.is_main:
            append(self.out / "log.jsonl", {"step": step, **entry})
        self.accelerator.log(entry, step=step)

    def look(self, step: int) -> None:
        """Save the state, and what a person wants to see of it."""
        if not self.is_main:
            return
        self.save(step)
        self.trainee.eval()
        with averaged(self.ema, self.weights), torch.no_grad():
            self.figures, sheet = self.trainee.measure(), self.trainee.sheet()
        self.trainee.train()
        (self.out / "samples").mkdir(exist_ok=True)
        sheet.save(self.out / "samples" / f"{step:07d}.png")
        write_loss_plot(self.out / "loss.png", self.losses, self.spec.name)
        append(self.out / "figures.jsonl", {"step": step, **self.figures})
        self.accelerator.log(self.figures, step=step)

    def note_skipped(self) -> int:
        """List the entries that were left out, by earlier runs too; returns how many."""
        path = self.out / "skipped.jsonl"
        skipped = {entry["place"]: entry["why"] for entry in read_log(path)}
        skipped |= getattr(getattr(self.trainee, "scenes", None), "skipped", {})
        if skipped and self.is_main:
            write_text(
                path,
                "".join(
                    json.dumps({"place": place, "why": why}) + "\n"
                    for place, why in sorted(skipped.items())
                ),
            )
        return len(skipped)

    def mean_loss(self) -> float:
        return sum(self.losses[-200:]) / max(1, len(self.losses[-200:]))

    def save(self, step: int) -> None:
        """Write the state of every part; a kill leaves the old file or the new one."""
        if self.is_main:
            parts = {
                "model": self.trainee.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": step,
            }
            with replacing(self.out / "state.pt") as temporary:
                torch.save({**parts, "ema": self.ema.state_dict() if self.ema else None}, temporary)

    def resume(self) -> int:
        """Restore the folder's state and return the step to go on from; 0 if there is none."""
        path = self.out / "state.pt"
        state = (
            torch.load(path, weights_only=True, map_location="cpu")
            if path.exists()
            else {"step": 0}
        )
        if state["step"]:
            self.trainee.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
                self.ema.to(self.accelerator.device)
        self.losses = [
            entry["loss"]
            for entry in read_log(self.out / "log.jsonl")
            if entry["step"] <= state["step"]
        ]
        if self.is_main:
            for name in ("log.jsonl", "figures.jsonl"):
                keep = [e for e in read_log(self.out / name) if e["step"] <= state["step"]]
                write_text(self.out / name, "".join(json.dumps(e) + "\n" for e in keep))
        self.accelerator.wait_for_everyone()
        return int(state["step"])


@contextmanager
def averaged(ema: EMAModel | None, weights: list[nn.Parameter]) -> Iterator[None]:
    """Put the moving average in the place of the weights for a while."""
    if ema is None:
        yield
        return
    ema.store(weights)
    ema.copy_to(weights)
    try:
        yield
    finally:
        ema.restore(weights)


@contextmanager
def stop_asked() -> Iterator[list[int]]:
    """A list that fills when Ctrl-C or SIGTERM comes: a step is never cut in half."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.signal(s, lambda number, frame: asked.append(number)) for s in signals}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to a log."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; a kill may have cut the last one short."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def refuse_changed(spec: TaskSpec) -> None:
    """Raise ChangedTrainingError if the folder was begun with another job."""
    path = Path(spec.output.path) / "job.json"
    if not path.exists():
        return
    there, here = flat(json.loads(path.read_text())), flat(spec.model_dump(mode="json"))
    changed = [
        f"{key}: was {there.get(key)!r}, is {here.get(key)!r}"
        for key in sorted({*there, *here} - set(FREE_TO_CHANGE))
        if there.get(key) != here.get(key)
    ]
    if changed:
        raise ChangedTrainingError(
            f"{spec.output.path} holds another training: {'; '.join(changed)}. Give another output.path"
        )


def train(spec: TaskSpec, report: Report | None = None) -> TrainResult:
    """Run a training job, or what is missing of it.

    Raises:
        ChangedTrainingError: the output folder holds another training.
        BadDataError: an entry of the data cannot be used, and is not to be skipped; what was saved stays.
        LockedError: another process trains in it.
    """
    out = Path(spec.output.path).absolute()
    refuse_changed(spec)
    training = Training(spec)
    if not training.is_main:  # the main process of several holds the lock and writes
        return training.run()
    with Lock(LocalStore(out)):
        write_text(out / "job.json", json.dumps(spec.model_dump(mode="json"), indent=1) + "\n")
        return training.run(report)
