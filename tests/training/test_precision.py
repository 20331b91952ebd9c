"""Training in bfloat16: the masters stay float32, and gradient checkpointing changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synthgen.training import loop
from synthgen.training.loop import Training, choose_precision, read_log, train
from synthgen.training.precision import compute_in_bfloat16
from synthgen.training.text_to_image import Spec

JOB: dict[str, Any] = {
    "version": 1,
    "name": "x",
    "steps": 3,
    "batch_size": 2,
    "warmup": 1,
    "vae": "synthgen/weights/synthgen-tiny",
    "channels": (16, 32, 32),
    "text_dim": 32,
    "data": {"side": 128, "scenes": 4, "fresh": 2, "sizes": (24, 40)},
}


@pytest.fixture(autouse=True)
def only_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every processor be one with AMX, and leave out the measurements between steps."""
    monkeypatch.setattr(loop, "has_amx", lambda: True)
    monkeypatch.setattr(Training, "save_progress", Training.save_state)


def make_spec(out: Path, **keys: Any) -> Spec:
    return Spec.model_validate({**JOB, **keys, "output": {"path": str(out), "every": 3}})


@pytest.mark.parametrize(
    ("key", "on_gpu", "chosen"),
    [
        ("auto", False, "bf16"),
        ("auto", True, "no"),
        ("no", False, "no"),
        ("bf16", False, "bf16"),
        ("bf16", True, "bf16"),
        ("fp16", True, "fp16"),
        ("fp16", False, "no"),
    ],
)
def test_the_precision_of_a_machine(key: Any, on_gpu: bool, chosen: str) -> None:
    assert choose_precision(key, on_gpu) == chosen


def test_weights_are_bfloat16_inside_the_block_alone() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    before = network.weight.detach().clone()
    with compute_in_bfloat16(network, {}):
        assert network.weight.dtype == torch.bfloat16
        network(torch.randn(4, 3, dtype=torch.bfloat16)).sum().backward()
    assert network.weight.dtype == torch.float32
    assert network.weight.grad is not None
    assert network.weight.grad.dtype == torch.float32
    torch.testing.assert_close(network.weight.detach(), before, rtol=0, atol=0)


def test_attention_is_computed_in_float32_inside_the_block() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 1, 5, 8, dtype=torch.bfloat16).unbind()
    mask = torch.randn(5, 5, dtype=torch.bfloat16)
    before = F.scaled_dot_product_attention
    expected = before(q.double(), k.double(), v.double(), attn_mask=mask.double())
    with compute_in_bfloat16(nn.Linear(1, 1), {}):
        inside = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert F.scaled_dot_product_attention is before
    assert inside.dtype == torch.bfloat16
    torch.testing.assert_close(inside, expected.bfloat16(), rtol=0, atol=0)


def test_the_weights_are_restored_after_an_error() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="broken"), compute_in_bfloat16(network, {}):
        raise ValueError("broken")
    assert network.weight.dtype == torch.float32


def test_steps_that_bfloat16_would_lose_add_up_in_the_masters() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4)
    for _ in range(20):
        with compute_in_bfloat16(network, {}):
            network(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert float(network.weight) == pytest.approx(1 - 20e-4, abs=1e-6)


def test_the_losses_are_those_of_float32_within_its_error(tmp_path: Path) -> None:
    losses = {}
    for key in ("auto", "no"):
        result = train(make_spec(tmp_path / key, mixed_precision=key))
        assert result.step == 3
        losses[key] = [entry["loss"] for entry in read_log(tmp_path / key / "log.jsonl")]
    assert losses["auto"] != losses["no"]
    assert losses["auto"] == pytest.approx(losses["no"], rel=0.02)


def test_gradient_checkpointing_changes_no_loss(tmp_path: Path) -> None:
    logs = []
    for key in (False, True):
        out = tmp_path / str(key)
        train(make_spec(out, gradient_checkpointing=key))
        logs.append(read_log(out / "log.jsonl"))
    assert logs[0] == logs[1]


def test_the_unet_checkpoints_gradients_only_on_demand(tmp_path: Path) -> None:
    for key in (False, True):
        training = Training(make_spec(tmp_path / "out", gradient_checkpointing=key))
        assert training.trainee.unet.is_gradient_checkpointing is key


def test_a_training_continues_in_another_precision(tmp_path: Path) -> None:
    train(make_spec(tmp_path, steps=2, mixed_precision="no"))
    assert train(make_spec(tmp_path, steps=3)).step == 3
