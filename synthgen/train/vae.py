"""Train the embedded checkpoint's autoencoder on pasted scenes.

`python -m synthgen.train.vae WORK --steps 4000`; run again to go on where it stopped. WORK/vae is the result.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from synthgen.train.scenes import pasted_scenes
from synthgen.train.state import load_state, save_state, trapezoid

SCENE_SIDE = 384


def new_vae() -> AutoencoderKL:
    """A small f = 4 autoencoder with 8 latent channels."""
    return AutoencoderKL(
        latent_channels=8,
        block_out_channels=(16, 48, 96),
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=SCENE_SIDE,
        scaling_factor=1.0,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def crops(pool: np.ndarray, rng: np.random.Generator, batch: int, side: int) -> Tensor:
    """Random crops (batch, 3, side, side) of the pool's pictures, mirrored half of the time."""
    out = []
    for _ in range(batch):
        picture = pool[rng.integers(len(pool))]
        y, x = rng.integers(0, picture.shape[0] - side + 1, 2)
        crop = picture[y : y + side, x : x + side]
        out.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return to_tensor(np.stack(out))


def gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def reconstruction_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + 2 L2 + L1 of the image gradients + 4 L1 of the picture at a quarter of its size.

    Edges are what a small dog is made of; without the last term its colour drowns in the detail of the grass.
    """
    edges = sum(((a - b).abs().mean() for a, b in zip(gradients(y), gradients(x), strict=True)), x.new_zeros(()))
    colour = F.avg_pool2d(y - x, 4).abs().mean()
    return (y - x).abs().mean() + 2 * F.mse_loss(y, x) + edges + 4 * colour


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Fold mean and deviation of each latent channel into the 1x1 convolutions, so that latents are about N(0, 1)."""
    mean_and_logvar = torch.cat([vae.encode(p[None]).latent_dist.parameters for p in pictures])
    channels = vae.config["latent_channels"]
    mean = mean_and_logvar[:, :channels].mean((0, 2, 3))
    std = mean_and_logvar[:, :channels].std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(vae.parameters(), lr=args.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, trapezoid(args.steps, warm=100))
    parts = {"model": vae, "optimiser": optimiser, "schedule": schedule}
    start = load_state(args.work / "vae_state.pt", parts)
    pool = np.stack([picture for _, picture in islice(pasted_scenes(SCENE_SIDE, args.seed), args.scenes)])
    held_out = to_tensor(np.stack([p for _, p in islice(pasted_scenes(256, 1, "heldout"), 8)]))
    began = time.time()
    for step in range(start, args.steps):
        x = crops(pool, np.random.default_rng((args.seed, step)), args.batch, args.side)
        posterior = vae.encode(x).latent_dist
        z = posterior.mode() + 0.02 * torch.randn_like(posterior.mode())
        loss = reconstruction_loss(vae.decode(z).sample, x) + 1e-4 * posterior.mode().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            with torch.no_grad():
                mse = F.mse_loss(vae.decode(vae.encode(held_out).latent_dist.mode()).sample, held_out) / 4
            print(
                f"step {step + 1} loss {loss.item():.4f} held-out PSNR {-10 * mse.log10():.2f} dB, {time.time() - began:.0f} s",
                flush=True,
            )
            save_state(args.work / "vae_state.pt", parts, step + 1)
    normalise_latents(vae, to_tensor(pool[:64]))
    vae.save_pretrained(args.work / "vae")


if __name__ == "__main__":
    main()
