"""The description of a device."""

from types import SimpleNamespace

import torch

from synthgen.engine.hardware import describe_card, describe_hardware


def test_a_card_is_described_by_what_its_arithmetic_depends_on() -> None:
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0)
    assert describe_card(card, 91002) == "NVIDIA H100 80GB HBM3, capability 9.0, cuDNN 91002"


def test_a_processor_is_described_with_its_instructions_if_torch_uses_them() -> None:
    name = describe_hardware("cpu", uses_torch=False)
    assert name
    capability = torch.backends.cpu.get_cpu_capability()
    assert describe_hardware("cpu", uses_torch=True) == f"{name}, {capability}"
