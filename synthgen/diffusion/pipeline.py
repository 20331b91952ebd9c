"""What the pipelines share: a checkpoint's parts, the denoising loop over merged predictions, and the decoder."""

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from synthgen.diffusion.keep import KeptPictures
from synthgen.diffusion.mixture import Mixture
from synthgen.diffusion.models import ModelSpec, find_model, unet_multiple, vae_factor
from synthgen.diffusion.schedulers import SCHEDULERS
from synthgen.pipelines import Numerics

StepEnd = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
AnyPipeline = TypeVar("AnyPipeline", bound="LatentPipeline")


class LatentPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers is untyped
    """A checkpoint in Stable Diffusion format, whatever is painted with it."""

    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.factor = vae_factor(vae.config)
        self.multiple = unet_multiple(unet.config)
        self.vae.enable_tiling()

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings (P, T, D) of prompts; what is beyond the tokenizer's length is cut off."""
        tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        return self.text_encoder(tokens.input_ids.to(self._execution_device)).last_hidden_state

    def cells_at_once(self, chunk: int) -> int:
        """Latent cells of `chunk` windows of the size that the checkpoint was trained at."""
        return int(chunk * self.unet.config.sample_size**2)

    def denoise(
        self,
        latents: Tensor,
        mixtures: Sequence[Mixture],
        callback: StepEnd | None,
        kept: KeptPictures | None = None,
        eta: float = 0.0,
    ) -> Tensor:
        """Run the schedule on the whole canvas of every image, with one mixture a step."""
        self.scheduler.set_timesteps(len(mixtures), device=latents.device)
        latents = latents * self.scheduler.init_noise_sigma
        extra = {"eta": eta} if "eta" in signature(self.scheduler.step).parameters else {}
        times = self.scheduler.timesteps
        for i, t in enumerate(self.progress_bar(times)):

            def predict(x: Tensor, embeddings: Tensor, t: Tensor = t) -> Tensor:
                x = x.to(self.unet.dtype, memory_format=torch.channels_last)
                prediction: Tensor = self.unet(x, t, encoder_hidden_states=embeddings).sample
                return prediction

            noise = mixtures[min(i, len(mixtures) - 1)](self.scheduler.scale_model_input(latents, t), predict)
            latents = self.scheduler.step(noise, t, latents, **extra).prev_sample
            if kept is not None:
                latents = kept.blend(latents, self.scheduler, times[i + 1] if i + 1 < len(times) else None)
            if callback is not None:
                latents = callback(self, i, t, {"latents": latents}).get("latents", latents)
        return latents

    def decode(
        self, latents: Tensor, output_type: str, kept: KeptPictures | None = None, cpu_vae: bool = False
    ) -> list[Image.Image] | NDArray[np.uint8]:
        """Pictures of latents, one at a time, in overlapping tiles where they are large."""
        device, dtype = self.vae.device, self.vae.dtype
        if cpu_vae:
            self.vae.to("cpu", torch.float32)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        scaled = (latents / self.vae.config.scaling_factor + shift).to(self.vae.device, self.vae.dtype)
        pixels = torch.cat([self.vae.decode(z[None]).sample.float().cpu() for z in scaled])
        if cpu_vae:
            self.vae.to(device, dtype)
        pixels = torch.nan_to_num((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
        arrays: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        arrays = arrays if kept is None else kept.paste_back(arrays)
        return arrays if output_type == "np" else [Image.fromarray(a) for a in arrays]


def load_pipeline(kind: type[AnyPipeline], spec: ModelSpec, scheduler: str | None, numerics: Numerics) -> AnyPipeline:
    """The pipeline of a recipe's checkpoint, on its device, as the engine uses it."""
    diffusers_logging.set_verbosity_error()
    auto = torch.float16 if numerics.device == "cuda" else torch.float32
    dtype = auto if spec.dtype == "auto" else getattr(torch, spec.dtype)
    pipeline: AnyPipeline = kind.from_pretrained(
        find_model(spec.model, spec.variant), torch_dtype=dtype, variant=spec.variant, use_safetensors=True, local_files_only=True
    ).to(numerics.device)
    if scheduler is not None:
        pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
