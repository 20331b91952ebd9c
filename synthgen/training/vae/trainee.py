"""Training of an autoencoder on crops of scenes."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from synthgen.pipelines.diffusion.sources import find_checkpoint
from synthgen.randomness import Stream, seed_sequence
from synthgen.training.augmentation import ImageArray
from synthgen.training.dataset_scenes import MinimumSize
from synthgen.training.scenes import PastedScenes, Pool, open_scenes
from synthgen.training.vae import Spec
from synthgen.verification import efficientnet

HELD_OUT_SCENES = 8
NORMALISATION_SCENES = 64
TAPS = (0, 2, 4)  # EfficientNet-Lite0 blocks whose features the perceptual loss compares


class VaeTrainee(nn.Module):
    """An AutoencoderKL; forward returns the loss of one batch of crops (N, 3, side, side)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        vae = make_vae(spec) if spec.init is None else read_vae(spec.init)
        self.vae = vae.float().to(memory_format=torch.channels_last)
        if spec.train == "decoder":
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        # A list keeps the weights of the classifier out of the module's state.
        self.features = [Features()] if spec.perceptual else []
        self.scenes = open_scenes(spec.data, spec.seed, MinimumSize(spec.crop, "crop"))
        held_out = islice(PastedScenes(256, 1, "heldout").iterate_from(0), HELD_OUT_SCENES)
        self.held_out = to_tensor(np.stack([image for _, image in held_out]))

    def batches(self, start: int, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield crops, and noise for their latents."""
        pool: Pool[ImageArray] = Pool(self.scenes, self.spec.data, lambda _, image: image)
        side = self.spec.crop
        latent_side = side // 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        channels = self.vae.config["latent_channels"]
        shape = (self.spec.batch_size, channels, latent_side, latent_side)
        for step, images in enumerate(pool.steps(start), start):
            sequence = seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            rng = np.random.default_rng(sequence)
            crops = sample_crops(images, rng, self.spec.batch_size, side)
            noise = rng.standard_normal(shape, np.float32)
            yield crops, torch.from_numpy(noise)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, noise = (tensor.to(self.vae.device) for tensor in batch)
        x = x.contiguous(memory_format=torch.channels_last)
        mean = self.vae.encode(x).latent_dist.mode()
        z = mean + self.spec.latent_noise * mean.detach().std() * noise
        y = self.vae.decode(z).sample
        loss = compute_reconstruction_loss(y, x) + 1e-4 * mean.square().mean()
        for features in self.features:
            loss = loss + self.spec.perceptual * features.to(x.device).distance(y, x)
        return loss

    def measure(self) -> dict[str, float]:
        """Return the PSNR of reconstructed held-out scenes, dB."""
        error = F.mse_loss(self.reconstruct_held_out(), self.held_out) / 4
        return {"psnr": round(float(-10 * error.log10()), 3)}

    def reconstruct_held_out(self) -> Tensor:
        """Return the held-out scenes after encoding and decoding."""
        return torch.cat([self.reconstruct(x[None]) for x in self.held_out])

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return images (N, 3, H, W) in [-1, 1] after encoding and decoding."""
        latents = self.vae.encode(x.to(self.vae.device)).latent_dist.mode()
        decoded: Tensor = self.vae.decode(latents).sample.clamp(-1, 1)
        return decoded.cpu()

    def render_sheet(self) -> Image.Image:
        """Return the held-out scenes in a row, above their reconstructions."""
        rows = []
        for images in (self.held_out, self.reconstruct_held_out()):
            rows.append(np.concatenate(list(to_pixels(images)), 1))
        return Image.fromarray(np.concatenate(rows))

    def export(self, folder: Path) -> None:
        """Write the autoencoder; if all of it was trained, with latents of about N(0, 1)."""
        vae = deepcopy(self.vae).eval()
        if self.spec.train == "all":
            images = []
            for _, image in islice(self.scenes.iterate_from(0), NORMALISATION_SCENES):
                images.append(to_tensor(image[None]).to(vae.device))
            normalise_latents(vae, images)
        vae.register_to_config(_name_or_path=self.spec.name)  # not the folder it was loaded from
        vae.save_pretrained(folder / "vae")


class Features(nn.Module):
    """The distance of images in the features of a classifier (EfficientNet-Lite0, Apache-2.0).

    This is LPIPS without trained weights: Zhang et al., arXiv 1801.03924, equation 1 with w = 1.
    """

    def __init__(self) -> None:
        super().__init__()
        stem, norm, blocks, *_ = efficientnet.load().children()
        self.stem = nn.Sequential(stem, norm, nn.ReLU6())
        self.blocks = blocks[: TAPS[-1] + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return normalised features of images (N, 3, H, W) in [-1, 1] at twice their size."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = self.stem(x)
        out = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                out.append(F.normalize(x, dim=1))
        return out

    def distance(self, y: Tensor, x: Tensor) -> Tensor:
        """Return the distance of images y to the reference images x."""
        with torch.no_grad():
            references = self(x)
        terms = []
        for features, reference in zip(self(y), references, strict=True):
            terms.append((features - reference).square().sum(1).mean())
        return torch.stack(terms).sum()


def read_vae(name: str) -> AutoencoderKL:
    """Return the autoencoder of a checkpoint."""
    checkpoint = find_checkpoint(name)
    variant = checkpoint.weights["vae"].variant
    return AutoencoderKL.from_pretrained(
        checkpoint.folder / "vae", variant=variant, use_safetensors=True
    )


def make_vae(spec: Spec) -> AutoencoderKL:
    """Return a small new autoencoder, without attention and with one layer in each block."""
    return AutoencoderKL(
        latent_channels=spec.latent_channels,
        block_out_channels=spec.channels,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * len(spec.channels),
        up_block_types=("UpDecoderBlock2D",) * len(spec.channels),
        sample_size=spec.data.side,
        scaling_factor=1.0,
    )


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert (N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: Tensor) -> np.ndarray:
    """Convert (N, 3, H, W) float in [-1, 1] to (N, H, W, 3) uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def sample_crops(
    images: Sequence[ImageArray], rng: np.random.Generator, number: int, side: int
) -> Tensor:
    """Return random crops (number, 3, side, side), each mirrored with a probability of 1/2."""
    crops = []
    for _ in range(number):
        image = images[int(rng.integers(len(images)))]
        y = int(rng.integers(0, image.shape[0] - side + 1))
        x = int(rng.integers(0, image.shape[1] - side + 1))
        crop = image[y : y + side, x : x + side]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return to_tensor(np.stack(crops))


def compute_image_gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences of neighbouring pixels: along the rows, and along the columns."""
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def compute_reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """Return L1 + 2 L2 + L1 of the image gradients + 4 L1 of the images at a quarter of their size.

    Small objects consist mostly of edges. Without the last term, their colour is lost in the detail
    of the background.
    """
    edges = x.new_zeros(())
    for a, b in zip(compute_image_gradients(y), compute_image_gradients(x), strict=True):
        edges = edges + (a - b).abs().mean()
    colour = F.avg_pool2d(y - x, 4).abs().mean()
    return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + edges + 4 * colour


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, images: list[Tensor]) -> None:
    """Change the 1x1 convolutions of an autoencoder so that its latents are about N(0, 1).

    The mean and the standard deviation of each latent channel are folded into the convolutions.

    Args:
        images: (1, 3, H, W) in [-1, 1], each.
    """
    channels = vae.config["latent_channels"]
    latents = torch.cat([vae.encode(image).latent_dist.mode().flatten(2) for image in images], 2)
    mean = latents.mean((0, 2))
    std = latents.std((0, 2))
    quant = vae.quant_conv
    post = vae.post_quant_conv
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
