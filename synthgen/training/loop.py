"""The training loop: steps, resumable states, sample sheets and loss plots."""

import gc
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from synthgen.errors import InputError
from synthgen.pipelines.diffusion.cpu_layers import use_cpu_layers
from synthgen.pipelines.diffusion.precision import has_amx
from synthgen.spec import flatten
from synthgen.storage.local import LocalStore, replace_atomically, write_text
from synthgen.storage.lock import Lock
from synthgen.training.base import TaskSpec
from synthgen.training.loss_plot import write_loss_plot
from synthgen.training.precision import Copies, compute_in_bfloat16

FREE_TO_CHANGE = (
    "steps",
    "output.every",
    "output.path",
    "data.workers",
    "data.on_bad",
    "name",
    "mixed_precision",
    "gradient_checkpointing",
)
MEAN_STEPS = 200  # the reported loss is the mean of this number of last steps
Report = Callable[[int, float, str], None]
"""Called with the number of finished steps, the mean loss, and what is done next.

That is "training" or "measuring". It is called before the first step, after each step, and after
each measurement.
"""


class ChangedTrainingError(InputError):
    """The output folder contains another training; the message names the keys that differ."""


@dataclass
class TrainResult:
    """The result of a training run.

    Attributes:
        step: the number of finished steps.
        loss: the mean loss of the last MEAN_STEPS steps.
        seconds: the duration of this run.
        interrupted: whether Ctrl-C or SIGTERM stopped the run; its state is then saved.
        figures: the last measurements on held-out data.
        skipped: the number of unusable entries of the data that were skipped; `skipped.jsonl` lists
            them.
    """

    step: int
    loss: float
    seconds: float
    interrupted: bool
    figures: dict[str, float] = field(default_factory=dict)
    skipped: int = 0


class Training:
    """A training and its output folder.

    A stopped run is resumed from `state.pt`. `log.jsonl` has a line for each step, `loss.png` and
    `samples/` show the progress, and `tensorboard/` contains the losses and measurements for
    TensorBoard. The result of the training is `checkpoint/`.
    """

    def __init__(self, spec: TaskSpec) -> None:
        torch.manual_seed(spec.seed)
        self.spec = spec
        self.out = Path(spec.output.path).absolute()
        on_gpu = torch.cuda.is_available()
        precision = choose_precision(spec.mixed_precision, on_gpu)
        self.accelerator = Accelerator(
            mixed_precision=precision if on_gpu else "no",
            log_with="tensorboard",
            project_dir=str(self.out),
        )
        # The models load within a second; their progress bars would mix with that of the steps.
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        trainee: Any = spec.load()
        self.trainee = trainee.to(self.accelerator.device)
        unet = getattr(trainee, "unet", None)
        if unet is not None and spec.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        # A GPU converts the weights at each layer (autocast); a CPU does so once a step.
        self.bfloat16_network: nn.Module | None = None
        self.bfloat16_copies: Copies = {}
        if unet is not None and precision == "bf16" and not on_gpu:
            use_cpu_layers(unet)
            self.bfloat16_network = unet
        self.weights = [p for p in self.trainee.parameters() if p.requires_grad]
        self.ema: EMAModel | None = None
        if spec.ema:
            self.ema = EMAModel(
                self.weights,
                decay=spec.ema,
                use_ema_warmup=True,
                inv_gamma=1.0,
                power=0.75,
            )
        if hasattr(trainee, "parameter_groups"):
            groups = trainee.parameter_groups()
        else:
            groups = [{"params": self.weights}]
        optimiser = torch.optim.AdamW(
            groups,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.model, self.optimiser = self.accelerator.prepare(self.trainee, optimiser)
        self.losses: list[float] = []
        self.figures: dict[str, float] = {}

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self.accelerator.is_main_process)

    def run(self, report: Report | None = None) -> TrainResult:
        """Train from the saved state, if there is one, to the last step."""
        start_time = time.perf_counter()
        step = self.resume()
        self.accelerator.init_trackers("tensorboard")
        batches = self.trainee.batches(step, self.accelerator.process_index)
        with record_stop_signals() as signals:
            self.report(report, step, "training")
            while step < self.spec.steps and not self.is_any_stopped(signals):
                loss = self.train_step(next(batches), step)
                step += 1
                self.log_step(step, loss)
                if step % self.spec.output.every == 0 or step == self.spec.steps:
                    self.report(report, step, "measuring")
                    self.save_progress(step)
                self.report(report, step, "training")
        self.leave_process_group()
        self.finish(step)
        seconds = time.perf_counter() - start_time
        skipped = self.write_skipped()
        interrupted = step < self.spec.steps
        return TrainResult(step, self.mean_loss(), seconds, interrupted, self.figures, skipped)

    def report(self, report: Report | None, step: int, activity: str) -> None:
        """Call a report, in the process that writes files."""
        if report is not None and self.is_main:
            report(step, self.mean_loss(), activity)

    def is_any_stopped(self, signals: list[int]) -> bool:
        """Return whether any of the training processes received a stop signal.

        All processes must stop after the same step: if one stopped alone, the others would wait for
        it forever.
        """
        received = torch.tensor(len(signals), device=self.accelerator.device)
        return bool(self.accelerator.reduce(received))

    def leave_process_group(self) -> None:
        """Release the model, then leave the group of processes.

        The order matters, because the model exchanges gradients through the group: torch can hang
        if the process leaves the group first.
        """
        self.model = self.trainee
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    def finish(self, step: int) -> None:
        """Write the checkpoint, or the state that a stopped run is resumed from."""
        if step < self.spec.steps:
            self.save_state(step)
        elif self.is_main:
            with use_averaged_weights(self.ema, self.weights):
                self.trainee.export(self.out / "checkpoint")

    def train_step(self, batch: Any, step: int) -> float:
        """Do one optimiser step, and return the loss."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.spec.learning_rate_at(step) * group.get("rate", 1.0)
        with self.hold_precision(), self.accelerator.autocast():
            loss = self.model(batch)
            self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        if self.ema:
            update_average(self.ema, self.weights)
        return float(self.accelerator.reduce(loss.detach(), "mean"))

    def hold_precision(self) -> AbstractContextManager[None]:
        """Return a context in which the UNet has bfloat16 weights, if it trains so on a CPU."""
        if self.bfloat16_network is None:
            return nullcontext()
        return compute_in_bfloat16(self.bfloat16_network, self.bfloat16_copies)

    def log_step(self, step: int, loss: float) -> None:
        """Add a line to the log and a point to TensorBoard's curves."""
        self.losses.append(loss)
        entry = {"loss": loss, "learning_rate": self.spec.learning_rate_at(step - 1)}
        if self.is_main:
            append_line(self.out / "log.jsonl", {"step": step, **entry})
        self.accelerator.log(entry, step=step)

    def save_progress(self, step: int) -> None:
        """Save the state, the figures, a sample sheet and the loss plot."""
        if not self.is_main:
            return
        self.save_state(step)
        self.trainee.eval()
        with use_averaged_weights(self.ema, self.weights), torch.no_grad():
            self.figures = self.trainee.measure()
            sheet = self.trainee.render_sheet()
        self.trainee.train()
        path = name_sheet(self.out, step)
        path.parent.mkdir(exist_ok=True)
        sheet.save(path)
        write_loss_plot(self.out / "loss.png", self.losses, self.spec.name)
        append_line(self.out / "figures.jsonl", {"step": step, **self.figures})
        self.accelerator.log(self.figures, step=step)

    def write_skipped(self) -> int:
        """List the entries that this run and earlier runs skipped, and return their number."""
        path = self.out / "skipped.jsonl"
        skipped = {entry["place"]: entry["why"] for entry in read_log(path)}
        scenes = getattr(self.trainee, "scenes", None)
        skipped |= getattr(scenes, "skipped", {})
        if skipped and self.is_main:
            write_log(path, ({"place": place, "why": skipped[place]} for place in sorted(skipped)))
        return len(skipped)

    def mean_loss(self) -> float:
        """Return the mean loss of the last MEAN_STEPS steps; 0 before the first step."""
        losses = self.losses[-MEAN_STEPS:]
        return sum(losses) / max(1, len(losses))

    def save_state(self, step: int) -> None:
        """Write `state.pt` atomically: a kill leaves either the old file or the new file."""
        if not self.is_main:
            return
        state = {
            "model": self.trainee.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": step,
            "ema": self.ema.state_dict() if self.ema else None,
        }
        with replace_atomically(self.out / "state.pt") as temporary:
            torch.save(state, temporary)

    def resume(self) -> int:
        """Restore the saved state and return the step to resume from; 0 if there is no state."""
        path = self.out / "state.pt"
        state: dict[str, Any] = {"step": 0}
        if path.exists():
            state = torch.load(path, weights_only=True, map_location="cpu")
        step = int(state["step"])
        if step:
            self.trainee.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
                self.ema.to(self.accelerator.device)
        entries = read_log(self.out / "log.jsonl", step)
        self.losses = [entry["loss"] for entry in entries]
        if self.is_main:  # remove the lines of later steps, because these are trained again
            write_log(self.out / "log.jsonl", entries)
            write_log(self.out / "figures.jsonl", read_log(self.out / "figures.jsonl", step))
        self.accelerator.wait_for_everyone()
        return step


def choose_precision(
    key: Literal["auto", "no", "fp16", "bf16"], on_gpu: bool
) -> Literal["no", "fp16", "bf16"]:
    """Return the precision that the key `mixed_precision` stands for on this machine."""
    if key == "bf16" or (key == "fp16" and on_gpu):
        return key
    return "bf16" if key == "auto" and not on_gpu and has_amx() else "no"


@torch.no_grad()
def update_average(ema: EMAModel, weights: list[nn.Parameter]) -> None:
    """Do what `EMAModel.step` does for trained weights, in one pass over their memory."""
    ema.optimization_step += 1
    ema.cur_decay_value = ema.get_decay(ema.optimization_step)
    for average, weight in zip(ema.shadow_params, weights, strict=True):
        average.lerp_(weight, 1 - ema.cur_decay_value)


@contextmanager
def use_averaged_weights(ema: EMAModel | None, weights: list[nn.Parameter]) -> Iterator[None]:
    """Replace the weights by their moving average inside the `with` block."""
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
def record_stop_signals() -> Iterator[list[int]]:
    """Yield a list that records SIGINT and SIGTERM, so that they do not interrupt a step."""
    received: list[int] = []

    def record(number: int, frame: Any) -> None:
        received.append(number)

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, record)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """Add one line to a log."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def write_log(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write a log with one line for each entry."""
    write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))


def read_log(path: Path, last: int | None = None) -> list[dict[str, Any]]:
    """Return the entries of the complete lines of a log; a kill may have cut the last line.

    Args:
        last: the last step whose entry is returned; None: return all entries.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    entries: list[dict[str, Any]] = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if last is None or entry["step"] <= last:
            entries.append(entry)
    return entries


def refuse_changed(spec: TaskSpec) -> None:
    """Raise ChangedTrainingError if the output folder contains the training of another job."""
    path = Path(spec.output.path) / "job.json"
    if not path.exists():
        return
    old = flatten(json.loads(path.read_text()))
    new = flatten(spec.model_dump(mode="json"))
    changed = []
    for key in sorted({*old, *new} - set(FREE_TO_CHANGE)):
        if old.get(key) != new.get(key):
            changed.append(f"{key}: was {old.get(key)!r}, is {new.get(key)!r}")
    if changed:
        raise ChangedTrainingError(
            f"{spec.output.path} holds another training: {'; '.join(changed)}. "
            "Give another output.path"
        )


def name_sheet(out: Path, step: int) -> Path:
    """Return the path of the sheet of samples after a step, in the output folder of a training."""
    return out / "samples" / f"{step:07d}.png"


def train(spec: TaskSpec, report: Report | None = None) -> TrainResult:
    """Run a training job, or resume it.

    Raises:
        ChangedTrainingError: the output folder contains another training.
        BadDataError: an entry of the data cannot be used, and `data.on_bad` is `refuse`; the saved
            state is kept.
        LockedError: another process trains in the folder.
    """
    out = Path(spec.output.path).absolute()
    refuse_changed(spec)
    training = Training(spec)
    if not training.is_main:  # only the main process holds the lock and writes files
        return training.run()
    with Lock(LocalStore(out)):
        write_text(out / "job.json", json.dumps(spec.model_dump(mode="json"), indent=1) + "\n")
        return training.run(report)
