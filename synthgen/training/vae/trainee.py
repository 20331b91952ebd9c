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

from synthgen.pipelines.diffusion.models import find_checkpoint
from synthgen.randomness import Stream, seed_sequence
from synthgen.training.augmentation import Picture
from synthgen.training.dataset_scenes import Least
from synthgen.training.scenes import PastedScenes, Pool, open_scenes
from synthgen.training.vae import Spec
from synthgen.verification import efficientnet

HELD_OUT_SCENES = 8
NORMALISED_ON = 64  # scenes
TAPS = (0, 2, 4)  # EfficientNet-Lite0 blocks whose features the perceptual loss compares


class VaeTrainee(nn.Module):
    """An AutoencoderKL; forward is the loss of one batch of crops (N, 3, side, side)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        vae = new_vae(spec) if spec.init is None else read_vae(spec.init)
        self.vae = vae.float().to(memory_format=torch.channels_last)
        if spec.train == "decoder":
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.features = (
            [Features()] if spec.perceptual else []
        )  # in a list: its weights are not part of our state
        self.scenes = open_scenes(spec.data, spec.seed, Least(spec.crop, "crop"))
        held_out = PastedScenes(256, 1, "heldout")
        self.held_out = to_tensor(
            np.stack([p for _, p in islice(held_out.from_number(0), HELD_OUT_SCENES)])
        )

    def batches(self, start: int, rank: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Crops, and noise for their latents."""
        pool: Pool[Picture] = Pool(self.scenes, self.spec.data, lambda _, picture: picture)
        f, side = 2 ** (len(self.vae.config["block_out_channels"]) - 1), self.spec.crop
        for step, pictures in enumerate(pool.steps(start), start):
            rng = np.random.default_rng(
                seed_sequence(self.spec.seed, step, Stream.TRAINING_STEP, rank)
            )
            shape = (self.spec.batch_size, self.vae.config["latent_channels"], side // f, side // f)
            yield (
                crops(pictures, rng, self.spec.batch_size, side),
                torch.from_numpy(rng.standard_normal(shape, np.float32)),
            )

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, noise = (t.to(self.vae.device) for t in batch)
        x = x.contiguous(memory_format=torch.channels_last)
        mean = self.vae.encode(x).latent_dist.mode()
        z = mean + self.spec.latent_noise * mean.detach().std() * noise
        y = self.vae.decode(z).sample
        loss = reconstruction_loss(y, x) + 1e-4 * mean.square().mean()
        for features in self.features:
            loss = loss + self.spec.perceptual * features.to(x.device).distance(y, x)
        return loss

    def measure(self) -> dict[str, float]:
        """PSNR of held-out scenes after the round trip, dB."""
        y = torch.cat([self.round_trip(x[None]) for x in self.held_out])
        return {"psnr": round(float(-10 * (F.mse_loss(y, self.held_out) / 4).log10()), 3)}

    def round_trip(self, x: Tensor) -> Tensor:
        decoded: Tensor = self.vae.decode(
            self.vae.encode(x.to(self.vae.device)).latent_dist.mode()
        ).sample.clamp(-1, 1)
        return decoded.cpu()

    def sheet(self) -> Image.Image:
        """Held-out scenes above, and what comes back of them below."""
        rows = [self.held_out, torch.cat([self.round_trip(x[None]) for x in self.held_out])]
        return Image.fromarray(
            np.concatenate([np.concatenate(list(to_pixels(row)), 1) for row in rows])
        )

    def export(self, folder: Path) -> None:
        """Write the autoencoder; if all of it was trained, with latents of about N(0, 1)."""
        vae = deepcopy(self.vae).eval()
        if self.spec.train == "all":
            pictures = [p for _, p in islice(self.scenes.from_number(0), NORMALISED_ON)]
            normalise_latents(vae, [to_tensor(p[None]).to(vae.device) for p in pictures])
        vae.register_to_config(
            _name_or_path=self.spec.name
        )  # not the folder that it was loaded from
        vae.save_pretrained(folder / "vae")


class Features(nn.Module):
    """Distance of two pictures in the features of a classifier of photographs (EfficientNet-Lite0, Apache-2.0).

    As LPIPS without its learnt weights: Zhang et al., arXiv 1801.03924, equation 1 with w = 1.
    """

    def __init__(self) -> None:
        super().__init__()
        stem, norm, blocks, *_ = efficientnet.load().children()
        self.stem = nn.Sequential(stem, norm, nn.ReLU6())
        self.blocks = blocks[: TAPS[-1] + 1]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Normalised features of pictures (N, 3, H, W) in [-1, 1], seen at twice their size."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        x = self.stem(x)
        out = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                out.append(F.normalize(x, dim=1))
        return out

    def distance(self, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self(x)
        terms = [(a - b).square().sum(1).mean() for a, b in zip(self(y), wanted, strict=True)]
        return torch.stack(terms).sum()


def read_vae(name: str) -> AutoencoderKL:
    """The autoencoder of a checkpoint."""
    checkpoint = find_checkpoint(name)
    variant = checkpoint.weights["vae"].variant
    return AutoencoderKL.from_pretrained(
        checkpoint.folder / "vae", variant=variant, use_safetensors=True
    )


def new_vae(spec: Spec) -> AutoencoderKL:
    """A small autoencoder without attention: one layer a block."""
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


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(x: Tensor) -> np.ndarray:
    """(N, 3, H, W) float in [-1, 1] to (N, H, W, 3) uint8."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def crops(pictures: Sequence[Picture], rng: np.random.Generator, batch: int, side: int) -> Tensor:
    """Random crops (batch, 3, side, side), mirrored half of the time."""
    out = []
    for _ in range(batch):
        picture = pictures[int(rng.integers(len(pictures)))]
        y, x = (int(rng.integers(0, n - side + 1)) for n in picture.shape[:2])
        crop = picture[y : y + side, x : x + side]
        out.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return to_tensor(np.stack(out))


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 L2 + L1 of the image gradients + 4 L1 of the picture at a quarter of its size.

    Edges are what a small dog is made of; without the last term its colour drowns in the detail of the grass.
    """
    edges = sum(
        ((a - b).abs().mean() for a, b in zip(gradients(y), gradients(x), strict=True)),
        x.new_zeros(()),
    )
    colour = F.avg_pool2d(y - x, 4).abs().mean()
    return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + edges + 4 * colour


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: list[Tensor]) -> None:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions, so that latents are about N(0, 1).

    Args:
        pictures: each (1, 3, H, W) in [-1, 1].
    """
    channels = vae.config["latent_channels"]
    means = torch.cat([vae.encode(p).latent_dist.mode().flatten(2) for p in pictures], 2)
    mean, std = means.mean((0, 2)), means.std((0, 2))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
