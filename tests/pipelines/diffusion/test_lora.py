"""Every layer of a LoRA is merged exactly, or its file is refused in one line."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthgen import cli
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.pipeline import load_pipeline
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from tests.pipelines.diffusion.test_checkpoint import tiny_sdxl

State = dict[str, Tensor]
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
RANK = 2


@pytest.fixture(scope="module")
def sdxl(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl(checkpoint, tmp_path_factory.mktemp("sdxl") / "model")


def pair(weight: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the low-rank factors of a change of a weight: (r, in, …) and (out, r, …)."""
    g = torch.Generator().manual_seed(seed)
    ones = (1,) * (weight.dim() - 2)
    down = torch.randn(RANK, *weight.shape[1:], generator=g)
    return down, torch.randn(len(weight), RANK, *ones, generator=g)


def shorten_names(state: State) -> State:
    """Return a network's weights by their names in files, without "text_model."."""
    return {name.removeprefix("text_model."): weight for name, weight in state.items()}


def load_weights(model: Path, lora: Path | None = None, scale: float = 1.0) -> dict[str, State]:
    """Return the weights of each part of a checkpoint with a LoRA."""
    name = None if lora is None else str(lora)
    spec = MixtureSpec(model=str(model), lora=name, lora_scale=scale)
    pipeline = load_pipeline(MixturePipeline, spec, None, Numerics())
    weights = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        network = getattr(pipeline, part)
        if network is not None:
            weights[part] = shorten_names(network.state_dict())
    return weights


def change_weight(weight: Tensor, down: Tensor, up: Tensor, factor: float) -> Tensor:
    """Return a weight plus `factor` times a low-rank change, in float64."""
    change = up.double().flatten(1) @ down.double().flatten(1)
    return weight.double() + factor * change.reshape(weight.shape)


def kohya_names(part: str, module: str) -> tuple[str, str]:
    """Return the names of the low-rank factors of a module in kohya's format."""
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[part]
    base = prefix + module.replace(".", "_")
    return f"{base}.lora_down.weight", f"{base}.lora_up.weight"


def peft_names(part: str, module: str) -> tuple[str, str]:
    """Return the names of the low-rank factors of a module in peft's format."""
    inner = module if part == "unet" else f"text_model.{module}"
    return f"{part}.{inner}.lora_A.weight", f"{part}.{inner}.lora_B.weight"


def old_diffusers_names(part: str, module: str) -> tuple[str, str]:
    """Return the names of the low-rank factors of a module in diffusers' former format."""
    if part == "text_encoder":
        base = f"text_encoder.text_model.{module}.lora_linear_layer"
    else:
        head, name = module.replace("to_out.0", "to_out").rsplit(".", 1)
        base = f"unet.{head}.processor.{name}_lora"
    return f"{base}.down.weight", f"{base}.up.weight"


PROJECTIONS = [
    ("unet", f"{ATTENTION}.to_q"),
    ("unet", f"{ATTENTION}.to_out.0"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj"),
]
CONVOLUTIONS = [
    ("unet", "down_blocks.0.resnets.0.conv1"),
    ("unet", "down_blocks.0.attentions.0.proj_in"),
]


@pytest.mark.parametrize(
    ("name_factors", "targets"),
    [
        (kohya_names, PROJECTIONS),
        (kohya_names, CONVOLUTIONS),
        (peft_names, [*PROJECTIONS, *CONVOLUTIONS]),
        (old_diffusers_names, PROJECTIONS),
    ],
)
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_every_layer_is_merged_exactly(
    name_factors: Callable[[str, str], tuple[str, str]],
    targets: list[tuple[str, str]],
    alpha: float | None,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    base = load_weights(checkpoint)
    state: State = {}
    wanted = {}
    factor = 0.7 if alpha is None else 0.7 * alpha / RANK
    for seed, (part, module) in enumerate(targets):
        weight = base[part][f"{module}.weight"]
        down, up = pair(weight, seed)
        down_name, up_name = name_factors(part, module)
        state[down_name] = down
        state[up_name] = up
        if alpha is not None:
            prefix = re.sub(r"\.(lora_down|lora_A|down)\.weight$", "", down_name)
            state[f"{prefix}.alpha"] = torch.tensor(alpha)
        wanted[part, f"{module}.weight"] = change_weight(weight, down, up, factor)
    save_file(state, tmp_path / "lora.safetensors")
    got = load_weights(checkpoint, tmp_path / "lora.safetensors", 0.7)
    for part, weights in base.items():
        for name, weight in weights.items():
            expected = wanted.get((part, name), weight.double())
            torch.testing.assert_close(got[part][name].double(), expected, atol=1e-6, rtol=1e-6)


# Names in kohya's format, which for SDXL are those of the original code.
SDXL_NAMES = {
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
        "unet",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    ),
    "lora_unet_input_blocks_8_1_transformer_blocks_1_ff_net_2": (
        "unet",
        "down_blocks.2.attentions.1.transformer_blocks.1.ff.net.2",
    ),
    "lora_unet_input_blocks_3_0_op": ("unet", "down_blocks.0.downsamplers.0.conv"),
    "lora_unet_input_blocks_5_0_emb_layers_1": ("unet", "down_blocks.1.resnets.1.time_emb_proj"),
    "lora_unet_input_blocks_7_0_skip_connection": ("unet", "down_blocks.2.resnets.0.conv_shortcut"),
    "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_v": (
        "unet",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    ),
    "lora_unet_middle_block_2_in_layers_2": ("unet", "mid_block.resnets.1.conv1"),
    "lora_unet_output_blocks_2_1_proj_in": ("unet", "up_blocks.0.attentions.2.proj_in"),
    "lora_unet_output_blocks_2_2_conv": ("unet", "up_blocks.0.upsamplers.0.conv"),
    "lora_unet_output_blocks_6_0_out_layers_3": ("unet", "up_blocks.2.resnets.0.conv2"),
    "lora_unet_time_embed_0": ("unet", "time_embedding.linear_1"),
    "lora_unet_label_emb_0_2": ("unet", "add_embedding.linear_2"),
    "lora_te1_text_model_encoder_layers_0_self_attn_k_proj": (
        "text_encoder",
        "encoder.layers.0.self_attn.k_proj",
    ),
    "lora_te2_text_model_encoder_layers_1_mlp_fc1": ("text_encoder_2", "encoder.layers.1.mlp.fc1"),
    "lora_te2_text_projection": ("text_encoder_2", "text_projection"),
}


def test_original_names_of_sdxl_are_merged_in_both_text_encoders(
    sdxl: Path, tmp_path: Path
) -> None:
    base = load_weights(sdxl)
    state: State = {}
    wanted = {}
    for seed, (name, (part, module)) in enumerate(SDXL_NAMES.items()):
        weight = base[part][f"{module}.weight"]
        down, up = pair(weight, seed)
        state[f"{name}.lora_down.weight"] = down
        state[f"{name}.lora_up.weight"] = up
        state[f"{name}.alpha"] = torch.tensor(1.0)
        wanted[part, f"{module}.weight"] = change_weight(weight, down, up, 1 / RANK)
    save_file(state, tmp_path / "lora.safetensors")
    got = load_weights(sdxl, tmp_path / "lora.safetensors")
    changed = set()
    for part, weights in base.items():
        for name, weight in weights.items():
            if not torch.equal(got[part][name], weight):
                changed.add((part, name))
    assert changed == wanted.keys()
    for (part, name), expected in wanted.items():
        torch.testing.assert_close(got[part][name].double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("beside", [True, False], ids=["peft", "diffusers"])
def test_the_configuration_of_an_adapter_is_used(
    beside: bool, checkpoint: Path, tmp_path: Path
) -> None:
    """peft writes alpha beside the file, diffusers into the file."""
    base = load_weights(checkpoint)["unet"][f"{ATTENTION}.to_q.weight"]
    down, up = pair(base)
    prefix = "base_model.model." if beside else "unet."
    state = {
        f"{prefix}{ATTENTION}.to_q.lora_A.weight": down,
        f"{prefix}{ATTENTION}.to_q.lora_B.weight": up,
    }
    metadata = None
    if not beside:
        settings = {"unet.r": RANK, "unet.lora_alpha": 6}
        metadata = {"lora_adapter_metadata": json.dumps(settings)}
    save_file(state, tmp_path / "adapter_model.safetensors", metadata)
    fingerprints = []
    spec = MixtureSpec(model=str(checkpoint), lora=str(tmp_path))
    for alpha in (6, 8) if beside else (6,):
        if beside:
            config = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha}
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        got = load_weights(checkpoint, tmp_path)["unet"][f"{ATTENTION}.to_q.weight"]
        torch.testing.assert_close(got, base + alpha / RANK * up @ down, atol=1e-6, rtol=1e-6)
        fingerprints.append(spec.fingerprint()["lora_sha256"])
    assert len(set(fingerprints)) == len(fingerprints)


TO_Q = f"lora_unet_{ATTENTION.replace('.', '_')}_to_q"


def layer(weight: Tensor, name: str = TO_Q) -> State:
    """Return the tensors of one layer in kohya's format."""
    down, up = pair(weight)
    return {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(1.0),
    }


def loha(weight: Tensor) -> State:
    return {f"{TO_Q}.hada_{end}": torch.zeros(2, 2) for end in ("w1_a", "w1_b", "w2_a", "w2_b")}


def lokr(weight: Tensor) -> State:
    return {f"lycoris_{ATTENTION.replace('.', '_')}_to_q.lokr_w1": torch.zeros(2, 2)}


def dora(weight: Tensor) -> State:
    return {**layer(weight), f"{TO_Q}.dora_scale": torch.ones(len(weight), 1)}


def other_base(weight: Tensor) -> State:
    return layer(torch.zeros(320, 768))


def partial(weight: Tensor) -> State:
    return {**layer(weight), **layer(weight, TO_Q.replace("blocks_0", "blocks_7"))}


def of_sdxl(weight: Tensor) -> State:
    return {**layer(weight), **layer(weight, "lora_te2_text_model_encoder_layers_0_mlp_fc1")}


def flux(weight: Tensor) -> State:
    return layer(weight, "lora_unet_double_blocks_0_img_attn_qkv")


def sd3(weight: Tensor) -> State:
    module = "transformer.transformer_blocks.0.attn.to_q"
    return {
        f"{module}.lora_A.weight": torch.zeros(2, 2),
        f"{module}.lora_B.weight": torch.zeros(2, 2),
    }


def half(weight: Tensor) -> State:
    state = layer(weight)
    return {name: tensor for name, tensor in state.items() if "lora_up" not in name}


def inversion(weight: Tensor) -> State:
    return {"<my-dog>": torch.zeros(16)}


def whole(weight: Tensor) -> State:
    blocks = [f"model.diffusion_model.input_blocks.{k}" for k in range(6)]
    return {f"{block}.weight": torch.zeros(2, 2, 3, 3) for block in blocks}


def tucker(weight: Tensor) -> State:
    return {**layer(weight), f"{TO_Q}.lora_mid.weight": torch.zeros(2, 2, 3, 3)}


REFUSED: list[tuple[Callable[[Tensor], State], str]] = [
    (loha, "is a LoHa"),
    (lokr, "is a LoKr"),
    (dora, "is a DoRA"),
    (tucker, "is a LoCon in Tucker's form"),
    (other_base, f"was made for another checkpoint: {TO_Q}.lora_down.weight [2, 768]"),
    (partial, "was made for another checkpoint: 3 of its 6 tensors fit no weight here"),
    (of_sdxl, "was made for SDXL (it changes a second text encoder)"),
    (flux, "was made for FLUX"),
    (sd3, "was made for a transformer"),
    (half, "without its counterpart"),
    (inversion, "is a textual inversion"),
    (whole, "is a whole checkpoint in one file"),
]


@pytest.mark.parametrize(("make", "phrase"), REFUSED, ids=[make.__name__ for make, _ in REFUSED])
def test_a_file_that_is_no_lora_of_the_checkpoint_is_refused(
    make: Callable[[Tensor], State],
    phrase: str,
    checkpoint: Path,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = load_file(checkpoint / "unet/diffusion_pytorch_model.safetensors")
    file = tmp_path / "lora.safetensors"
    save_file(make(weights[f"{ATTENTION}.to_q.weight"]), file)
    check_refusal(job_file, checkpoint, file, phrase, capsys)


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda data: data[: len(data) // 2], "is cut short"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_lora_is_refused(
    change: Callable[[bytes], bytes],
    phrase: str,
    checkpoint: Path,
    job_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(layer(torch.zeros(8, 8)), file)
    file.write_bytes(change(file.read_bytes()))
    check_refusal(job_file, checkpoint, file, phrase, capsys)


def check_refusal(job_file: Path, checkpoint: Path, file: Path, phrase: str, capsys: Any) -> None:
    """Check that a job with the LoRA fails with one line, and writes nothing."""
    pipeline = ["pipeline.method=mixture", f"pipeline.model={checkpoint}", f"pipeline.lora={file}"]
    status = cli.main(["run", str(job_file), *pipeline])
    error = capsys.readouterr().err
    assert status == 2, error
    assert error.count("\n") == 1, error
    assert "pipeline.lora: " in error
    assert phrase in error
    assert not (job_file.parent / "out").exists()


def test_the_loader_of_diffusers_is_refused_for_sdxl(sdxl: Path, tmp_path: Path) -> None:
    pipeline = MixturePipeline.from_pretrained(sdxl, use_safetensors=True)
    with pytest.raises(
        ValueError, match="it would leave out the second text encoder; use merge_lora"
    ):
        pipeline.load_lora_weights(str(tmp_path))
