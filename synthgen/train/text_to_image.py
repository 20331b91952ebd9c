"""Train the embedded checkpoint's UNet and text encoder on windows of pasted scenes.

`python -m synthgen.train.text_to_image WORK --steps 4000` after `synthgen.train.vae`; run again to go on where it
stopped. WORK/checkpoint is the result, in Stable Diffusion format. Windows are cut from the scenes' latents by the
same function that cuts them when the mixture pipeline paints: what the UNet meets there is what it was trained on.
"""

import argparse
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthgen.diffusion.windows import object_windows
from synthgen.scene import Scene, region_prompt
from synthgen.train.scenes import GROUNDS, OBJECTS, pasted_scenes
from synthgen.train.state import load_state, save_state, trapezoid
from synthgen.train.vae import to_tensor

SCENE_SIDE = 512
WINDOW_CONTEXT = 0.1  # as the mixture pipeline's default
WINDOW_MULTIPLE = 4  # cells: two halvings
WINDOW_LEAST = 16  # cells
GROUND_SIDES = (16, 20, 24, 28, 32)  # cells
GROUND_SHARE = 0.25
PROMPT_DROPOUT = 0.12
SNR_GAMMA = 5.0  # min-SNR weighting, arXiv 2303.09556
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
MORE_WORDS = "in on with standing sitting running lying field lawn cat ball tree golden gray red green blue sunny"


def new_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer whose small vocabulary has a token for each word of the captions, and bytes for the rest."""
    text = " ".join((*OBJECTS, *GROUNDS, MORE_WORDS)).format(category="dog").replace("{category}", "")
    letters = [chr(c) for c in range(33, 127)]
    tokens, merges = [*letters, *(c + "</w>" for c in letters)], []
    for word in sorted(set(text.lower().split())):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=32)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=WINDOW_LEAST,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


@dataclass
class WindowPool:
    """Latents of scenes, and the windows of each size in them: (scene, y0, x0, prompt)."""

    vae: AutoencoderKL
    latents: list[Tensor] = field(default_factory=list)
    windows: dict[tuple[int, int], list[tuple[int, int, int, str]]] = field(default_factory=lambda: defaultdict(list))
    grounds: list[tuple[int, str]] = field(default_factory=list)

    @torch.no_grad()
    def add(self, scene: Scene, picture: np.ndarray) -> None:
        """Encode one scene and note its windows; a scene without boxes is ground, cut anywhere."""
        number, f = len(self.latents), 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.latents.append(self.vae.encode(to_tensor(picture[None])).latent_dist.mode()[0].half())
        if len(scene.layout) == 0:
            self.grounds.append((number, scene.background))
            return
        size = (scene.layout.width, scene.layout.height)
        boxes = object_windows(scene.layout.boxes, size, f, WINDOW_MULTIPLE, WINDOW_LEAST, WINDOW_CONTEXT)
        for (x0, y0, x1, y1), phrase in zip(boxes.tolist(), scene.phrases, strict=True):
            self.windows[(y1 - y0, x1 - x0)].append((number, y0, x0, region_prompt(phrase, scene.background)))

    def batch(self, rng: np.random.Generator, size: int) -> tuple[Tensor, list[str]]:
        """Windows of one random size: latents (size, C, h, w) float32 and their prompts."""
        if rng.random() < GROUND_SHARE:
            h, w = (int(v) for v in rng.choice(GROUND_SIDES, 2))
            picks = [self._ground(rng, h, w) for _ in range(size)]
        else:
            sizes = sorted(self.windows)
            share = np.array([len(self.windows[s]) for s in sizes], float)
            h, w = sizes[int(rng.choice(len(sizes), p=share / share.sum()))]
            have = self.windows[(h, w)]
            picks = [have[int(i)] for i in rng.integers(len(have), size=size)]
        return torch.stack([self.latents[n][:, y : y + h, x : x + w] for n, y, x, _ in picks]).float(), [p for *_, p in picks]

    def _ground(self, rng: np.random.Generator, h: int, w: int) -> tuple[int, int, int, str]:
        number, prompt = self.grounds[int(rng.integers(len(self.grounds)))]
        rows, columns = self.latents[number].shape[1:]
        return number, int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1)), prompt


class Trainer:
    """One training run: networks, optimiser, moving average, and the step."""

    def __init__(self, work: Path, steps: int, lr: float, seed: int) -> None:
        torch.manual_seed(seed)
        self.vae = AutoencoderKL.from_pretrained(work / "vae").eval().requires_grad_(False)
        self.tokenizer = new_tokenizer()
        self.text = new_text_encoder(self.tokenizer)
        self.unet = new_unet(self.vae.config["latent_channels"]).to(memory_format=torch.channels_last)
        self.nets = nn.ModuleDict({"unet": self.unet, "text": self.text})
        self.ema = EMAModel(self.nets.parameters(), decay=0.9995, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self.optimiser = torch.optim.AdamW(self.nets.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, trapezoid(steps, warm=200))
        self.noise_schedule = DDPMScheduler(**SCHEDULE)
        self.state = work / "unet_state.pt"
        self.parts = {"nets": self.nets, "ema": self.ema, "optimiser": self.optimiser, "schedule": self.schedule}

    def embed(self, prompts: list[str]) -> Tensor:
        """Text embeddings (N, tokens, dim)."""
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.text(ids).last_hidden_state

    def loss(self, x: Tensor, prompts: list[str], generator: torch.Generator) -> Tensor:
        """Min-SNR weighted v-prediction loss of latents (N, C, h, w)."""
        n = len(x)
        t = torch.randint(0, 1000, (n,), generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        dropped = torch.rand(n, generator=generator) < PROMPT_DROPOUT
        emb = self.embed(["" if d else p for d, p in zip(dropped.tolist(), prompts, strict=True)])
        noisy = self.noise_schedule.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        v = self.unet(noisy, t, emb).sample
        snr = compute_snr(self.noise_schedule, t)
        weight = snr.clamp(max=SNR_GAMMA) / (snr + 1)
        return (weight * (v - self.noise_schedule.get_velocity(x, noise, t)).square().mean((1, 2, 3))).mean()

    def step(self, x: Tensor, prompts: list[str], generator: torch.Generator) -> float:
        loss = self.loss(x, prompts, generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.nets.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.schedule.step()
        self.ema.step(self.nets.parameters())
        return float(loss.detach())

    @torch.no_grad()
    def sample(self, prompts: list[str], h: int, w: int, guidance: float = 2.0, steps: int = 16) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of single windows, with the averaged weights."""
        z = torch.randn((len(prompts), self.unet.config["in_channels"], h, w), generator=torch.Generator().manual_seed(0))
        emb = self.embed([*prompts, *[""] * len(prompts)])
        solver = DPMSolverMultistepScheduler(**SCHEDULE)
        solver.set_timesteps(steps)
        for t in solver.timesteps:
            cond, uncond = self.unet(torch.cat([z, z]), t, emb).sample.chunk(2)
            z = solver.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        return self.vae.decode(z).sample

    def sheet(self, path: Path) -> None:
        """A PNG of windows painted with the averaged weights: a row a size."""
        prompts = [f"a {c} dog, a field of grass" for c in ("brown", "white", "black")] * 2
        prompts += ["a dog, gravel", "a field of grass", "sand"]
        self.ema.store(self.nets.parameters())
        self.ema.copy_to(self.nets.parameters())
        rows = [self.sample(prompts, h, w) for h, w in ((20, 20), (16, 24), (24, 20), (28, 28))]
        self.ema.restore(self.nets.parameters())
        canvas = Image.new("RGB", (len(prompts) * 112, sum(r.shape[2] for r in rows)))
        y = 0
        for row in rows:
            for i, pixels in enumerate(((row.clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()):
                canvas.paste(Image.fromarray(pixels), (i * 112, y))
            y += row.shape[2]
        canvas.save(path)

    def export(self, folder: Path) -> None:
        """Write the averaged weights as an fp16 Stable Diffusion checkpoint."""
        self.ema.store(self.nets.parameters())
        self.ema.copy_to(self.nets.parameters())
        self.vae.register_to_config(_name_or_path="synthgen-tiny")  # not the folder that it was loaded from
        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.to(dtype=torch.float16).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=160, help="scenes encoded before the first step")
    parser.add_argument("--fresh", type=int, default=8, help="scenes added every 50 steps")
    args = parser.parse_args()
    trainer = Trainer(args.work, args.steps, args.lr, args.seed)
    start = load_state(trainer.state, trainer.parts)
    scenes = pasted_scenes(SCENE_SIDE, args.seed + 1 + start)  # resumed: scenes that it has not seen
    pool = WindowPool(trainer.vae)
    began, losses = time.time(), []
    for step in range(start, args.steps):
        if step == start or step % 50 == 0:
            for scene, picture in islice(scenes, args.scenes if step == start else args.fresh):
                pool.add(scene, picture)
        rng = np.random.default_rng((args.seed, step))
        x, prompts = pool.batch(rng, args.batch)
        losses.append(trainer.step(x, prompts, torch.Generator().manual_seed(int(rng.integers(2**62)))))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1} loss {np.mean(losses[-200:]):.4f}, {time.time() - began:.0f} s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == args.steps:
            save_state(trainer.state, trainer.parts, step + 1)
            trainer.sheet(args.work / f"sheet_{step + 1:06d}.png")
    trainer.export(args.work / "checkpoint")


if __name__ == "__main__":
    main()
