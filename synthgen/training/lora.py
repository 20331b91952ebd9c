"""LoRA (Hu et al., arXiv 2106.09685) for UNets, through peft."""

from copy import deepcopy
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

UNET_LORA = (
    r"^(?!.*fuser).*\."
    r"(to_q|to_k|to_v|to_out\.0|conv1|conv2|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)$"
)


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Add a trainable LoRA to the layers of a UNet, except its gated layers; freeze all else.

    A new LoRA does not change what the UNet predicts.
    """
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=UNET_LORA))
    for name, weight in unet.named_parameters():
        weight.requires_grad_("lora_" in name)


def merge_lora(unet: UNet2DConditionModel, folder: Path) -> UNet2DConditionModel:
    """Return a copy of a UNet with its LoRA, if it has one, merged into the weights.

    The LoRA itself is written to `folder`.
    """
    unet = deepcopy(unet)
    if getattr(unet, "peft_config", None):
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=get_peft_model_state_dict(unet)
        )
        unet.fuse_lora()
        unet.unload_lora()
    return unet
