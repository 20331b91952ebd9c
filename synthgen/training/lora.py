"""LoRA (Hu et al., arXiv 2106.09685) for UNets, through peft."""

from copy import deepcopy
from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict

UNET_LORA = r"^(?!.*fuser).*\.(to_q|to_k|to_v|to_out\.0|conv1|conv2|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2)$"


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Give a UNet, but not its gated layers, a LoRA to be trained; at first it changes nothing. All else is frozen."""
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=UNET_LORA))
    for name, weight in unet.named_parameters():
        weight.requires_grad_("lora_" in name)


def merged(unet: UNet2DConditionModel, beside: Path) -> UNet2DConditionModel:
    """A copy of a UNet with its LoRA in the weights, if it has one; the LoRA itself is then written to the folder `beside`."""
    unet = deepcopy(unet)
    if getattr(unet, "peft_config", None):
        StableDiffusionPipeline.save_lora_weights(
            beside, unet_lora_layers=get_peft_model_state_dict(unet)
        )
        unet.fuse_lora()
        unet.unload_lora()
    return unet
