"""Training of a checkpoint that reads annotations as a mask, encoded beside the latents."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from synthgen.layouts.base import Layout
from synthgen.pipelines.annotation_mask.pipeline import AnnotationMaskPipeline
from synthgen.pipelines.diffusion.box_annotations import draw_annotations, list_corners
from synthgen.scenes.scene import Scene
from synthgen.training.annotation_mask import Spec
from synthgen.training.augmentation import ImageArray
from synthgen.training.box_conditioning import BoxConditioningTrainee, NoisyLatents
from synthgen.training.lora import add_lora
from synthgen.training.windows import EncodedScene, is_gated


@dataclass(frozen=True)
class Batch:
    """A batch of windows.

    Attributes:
        latents: the latents and their noise.
        ids: token ids (B, T) of the captions.
        mask: latents (B, C, h, w) of the mask.
        empty_mask: latents (B, C, h, w) of a mask without boxes.
    """

    latents: NoisyLatents
    ids: Tensor
    mask: Tensor
    empty_mask: Tensor


class AnnotationMaskTrainee(BoxConditioningTrainee):
    """A UNet that reads masks, and its text encoder; forward returns the loss of one batch."""

    spec: Spec

    def __init__(self, spec: Spec) -> None:
        options = {
            "tile": min(256, spec.windows[1]),
            "label_range": spec.label_range,
            "categories": spec.categories,
        }
        super().__init__(spec, AnnotationMaskPipeline, options)
        self.empty_masks: dict[tuple[int, int], Tensor] = {}
        widen_input(self.unet, 2 * self.vae[0].config.latent_channels)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(not is_gated(name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)
            # Its new weights are 0, and the LoRA file does not contain it.
            self.unet.conv_in.requires_grad_(True)

    @torch.no_grad()
    def encode(self, scene: Scene, image: ImageArray) -> EncodedScene:
        """Return a scene with the latents of its mask."""
        encoded = super().encode(scene, image)
        rows, columns = encoded.latents.shape[1:]
        mask = self.encode_mask(scene.layout)
        return replace(encoded, mask_latents=mask[:, :rows, :columns])

    def encode_mask(self, layout: Layout) -> Tensor:
        """Return latents (C, h, w) float16 of boxes in grey on black, as the pipeline does."""
        mask = draw_annotations(
            [list_corners(layout, self.spec.categories)],
            (layout.width, layout.height),
            self.spec.label_range,
        )
        pipeline = self.pipeline[0]
        pipeline.vae.to(self.unet.device)
        return pipeline.encode_images(mask)[0].half()

    @torch.no_grad()
    def encode_empty_mask(self, width: int, height: int) -> Tensor:
        """Return latents (C, h, w) of a mask without boxes; each size is encoded once."""
        size = (width, height)
        if size not in self.empty_masks:
            layout = Layout(width, height, np.zeros((0, 4), np.float32), ())
            self.empty_masks[size] = self.encode_mask(layout).float()
        return self.empty_masks[size]

    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Return windows of one random size at random places, with their part of the mask."""
        windows = self.sample_windows(scenes, rng)
        crops = []
        for window in windows:
            if window.scene.mask_latents is not None:
                crops.append(window.crop(window.scene.mask_latents))
        masks = torch.stack(crops).float()
        empty = self.encode_empty_mask(windows[0].layout.width, windows[0].layout.height)
        has_boxes = torch.tensor([window.has_boxes for window in windows], device=masks.device)
        given = torch.where(has_boxes[:, None, None, None], masks, empty)
        ids = self.tokenize([window.caption for window in windows])
        return Batch(self.sample_noise(windows, rng), ids, given, empty.expand_as(masks))

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean squared error of the prediction."""
        device = self.unet.device
        latents = batch.latents.to(device)
        noisy = self.add_noise(latents.x, latents.noise, latents.t)
        z = torch.cat([noisy, batch.mask.to(device)], 1)
        words = self.text(batch.ids.to(device)).last_hidden_state
        predicted = self.predict(z, latents.t, words)
        return self.loss(predicted, latents.x, latents.noise, latents.t)

    def drop_boxes(self, batch: Batch) -> Batch:
        return replace(batch, mask=batch.empty_mask)


def widen_input(unet: UNet2DConditionModel, channels: int) -> None:
    """Give a UNet more input channels.

    The weights of the new channels are 0, so that the predictions do not change.
    """
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
