"""Training of a checkpoint that reads annotations as a mask: boxes painted grey on black, encoded beside the latents."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask.pipeline import AnnotationMaskPipeline
from synthgen.pipelines.diffusion.box_annotations import corners_of, paint_annotations
from synthgen.scenes.scene import Scene
from synthgen.training.annotation_mask import Spec
from synthgen.training.augmentation import Picture
from synthgen.training.box_conditioning import BoxedTrainee, Noised
from synthgen.training.lora import add_lora
from synthgen.training.windows import EncodedScene, is_gated


@dataclass(frozen=True)
class Batch:
    """Windows: noised latents, token ids (B, T), latents (B, C, h, w) of the mask, and the same of one without boxes."""

    noised: Noised
    ids: Tensor
    mask: Tensor
    black: Tensor


class AnnotationMaskTrainee(BoxedTrainee):
    """A UNet that reads masks, and its text encoder; forward is the loss of one batch."""

    spec: Spec

    def __init__(self, spec: Spec) -> None:
        options = {
            "tile": min(256, spec.windows[1]),
            "label_range": spec.label_range,
            "categories": spec.categories,
        }
        super().__init__(spec, AnnotationMaskPipeline, options)
        self.blacks: dict[tuple[int, int], Tensor] = {}
        widen(self.unet, 2 * self.vae[0].config.latent_channels)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(not is_gated(name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)
            self.unet.conv_in.requires_grad_(
                True
            )  # it begins at 0, and a LoRA beside the checkpoint lacks it

    @torch.no_grad()
    def encode(self, scene: Scene, picture: Picture) -> EncodedScene:
        """A scene with the latents of its mask."""
        found = super().encode(scene, picture)
        return replace(
            found,
            beside=self.encode_mask(scene.layout)[
                :, : found.latents.shape[1], : found.latents.shape[2]
            ],
        )

    def encode_mask(self, layout: Layout) -> Tensor:
        """Latents (C, h, w) float16 of the boxes painted grey on black, as the pipeline makes them."""
        painted = paint_annotations(
            [corners_of(layout, self.spec.categories)],
            (layout.width, layout.height),
            self.spec.label_range,
        )
        self.painter[0].vae.to(self.unet.device)
        return self.painter[0].encode_pictures(painted)[0].half()

    @torch.no_grad()
    def black(self, width: int, height: int) -> Tensor:
        """Latents (C, h, w) of a mask without boxes; each size is encoded once."""
        if (width, height) not in self.blacks:
            self.blacks[width, height] = self.encode_mask(
                Layout(width, height, np.zeros((0, 4), np.float32), ())
            ).float()
        return self.blacks[width, height]

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random size, anywhere, with their part of the mask."""
        windows = self.windows(scenes, rng)
        masks = torch.stack(
            [w.of(w.scene.beside) for w in windows if w.scene.beside is not None]
        ).float()
        black = self.black(windows[0].layout.width, windows[0].layout.height)
        told = torch.tensor([w.told for w in windows], device=masks.device)[:, None, None, None]
        ids = self.tokens([w.caption for w in windows])
        return Batch(
            self.noised(windows, rng), ids, torch.where(told, masks, black), black.expand_as(masks)
        )

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared error of the prediction."""
        noised, device = batch.noised.to(self.unet.device), self.unet.device
        z = torch.cat([self.noisy(noised.x, noised.noise, noised.t), batch.mask.to(device)], 1)
        words = self.text(batch.ids.to(device)).last_hidden_state
        predicted = self.unet(
            z.contiguous(memory_format=torch.channels_last), noised.t, words
        ).sample
        return self.loss(predicted, noised.x, noised.noise, noised.t)

    def untold(self, batch: Batch) -> Batch:
        return replace(batch, mask=batch.black)


def widen(unet: UNet2DConditionModel, channels: int) -> None:
    """Give a UNet more input channels; the weights of the new ones are 0, so it predicts what it did."""
    old = unet.conv_in
    if old.in_channels == channels:
        return
    new = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
    nn.init.zeros_(new.weight)
    new.weight.data[:, : old.in_channels] = old.weight.data
    assert old.bias is not None
    assert new.bias is not None
    new.bias.data.copy_(old.bias.data)
    unet.conv_in = new
    unet.register_to_config(in_channels=channels)
