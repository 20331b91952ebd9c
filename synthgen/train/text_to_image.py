"""Training of a UNet and a text encoder on windows of scenes.

Windows are cut by the same function that cuts them when the mixture pipeline paints: what the UNet meets there is what
it was trained on.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthgen.diffusion.models import find_model, unet_multiple, vae_factor
from synthgen.diffusion.windows import object_windows
from synthgen.scene import Scene, region_prompt
from synthgen.train.scenes import PastedScenes, Picture, Pool, open_scenes
from synthgen.train.tasks.text_to_image import Spec
from synthgen.train.vae import to_pixels, to_tensor

LEAST, MOST = 64, 256  # window sides, px
CONTEXT = 0.1  # share of a box's side round it, as the mixture pipeline's default
GROUND_SHARE, SCENE_SHARE = 0.2, 0.08  # of the batches: ground alone; any window, with the names of all that is in it
NAMED = 4  # objects that a scene window's caption names at most
BATCH_AREA = 80 * 80  # px of a window at which a batch has its full size; a batch of larger windows is smaller
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
CAPTIONS_READ = 128  # scenes whose words a new tokenizer knows
MORE_WORDS = "in on with standing sitting running lying field lawn golden gray red green blue yellow orange sunny dark"

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Window:
    """A part of a scene with a caption: y0, x0, h, w in latent cells."""

    y: int
    x: int
    h: int
    w: int
    caption: str


@dataclass(frozen=True)
class EncodedScene:
    """Latents (C, H, W) float16 of a scene, a window for each of its boxes, and what is where in cells."""

    latents: Tensor
    objects: tuple[Window, ...]
    boxes: np.ndarray
    scene: Scene


class TextToImageTrainee(nn.Module):
    """UNet and text encoder; forward is the loss of one batch: latents, token ids, timesteps, noise."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        vae = AutoencoderKL.from_pretrained(spec.vae_folder)
        self.vae = [vae.float().eval().requires_grad_(False)]  # in a list: not part of our state
        self.factor = vae_factor(vae.config)
        self.scenes = open_scenes(spec.data, spec.seed + 1)
        read = (scene for scene, _ in islice(self.scenes.from_number(0), CAPTIONS_READ))
        self.tokenizer = new_tokenizer(c for scene in read for c in (*scene.phrases, scene.background))
        self.text = new_text_encoder(self.tokenizer, spec.text_dim)
        self.unet = new_unet(spec, vae.config["latent_channels"], LEAST // self.factor)
        if spec.init is not None:
            self.start_from(find_model(spec.init))
        self.unet.to(memory_format=torch.channels_last)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_("fuser" not in name and "position_net" not in name)
        self.noise_schedule = DDPMScheduler(**SCHEDULE)

    def start_from(self, folder: Path) -> None:
        """Take over the weights of a checkpoint; words that its tokenizer knows keep their embeddings."""
        old = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict()
        self.unet.load_state_dict({**self.unet.state_dict(), **old})
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").state_dict()
        words, known = self.tokenizer.get_vocab(), CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").get_vocab()
        name = next(n for n in text if n.endswith("token_embedding.weight"))
        embedding = self.text.state_dict()[name].clone()
        shared = [w for w in words if w in known]
        embedding[[words[w] for w in shared]] = text[name][[known[w] for w in shared]].float()
        self.text.load_state_dict({**text, name: embedding})

    def batches(self, start: int, rank: int) -> Iterator[Batch]:
        pool: Pool[EncodedScene] = Pool(self.scenes, self.spec.data, self.encode)
        for step, scenes in enumerate(pool.steps(start), start):
            yield self.batch(list(scenes), np.random.default_rng((self.spec.seed, step, rank)))

    @torch.no_grad()
    def encode(self, scene: Scene, picture: Picture) -> EncodedScene:
        """A scene as it is kept in the pool."""
        vae = self.vae[0].to(self.unet.device)
        height, width = (n // self.factor * self.factor for n in picture.shape[:2])
        pixels = to_tensor(picture[None, :height, :width]).to(vae.device)
        latents = vae.encode(pixels).latent_dist.mode()[0].half()
        multiple = unet_multiple(self.unet.config)
        cells = object_windows(scene.layout.boxes, (width, height), self.factor, multiple, LEAST // self.factor, CONTEXT)
        windows = tuple(
            Window(y0, x0, y1 - y0, x1 - x0, region_prompt(phrase, scene.background))
            for (x0, y0, x1, y1), phrase in zip(cells.tolist(), scene.phrases, strict=True)
            if max(y1 - y0, x1 - x0) <= MOST // self.factor
        )
        return EncodedScene(latents, windows, scene.layout.boxes / self.factor, scene)

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random kind and size, with the noise they get."""
        picks = self.picks(scenes, rng)
        x = torch.stack([s.latents[:, w.y : w.y + w.h, w.x : w.x + w.w] for s, w in picks]).float()
        dropped = rng.random(len(picks)) < self.spec.prompt_dropout
        ids = self.tokens(["" if d else w.caption for d, (_, w) in zip(dropped, picks, strict=True)])
        t = torch.from_numpy(rng.integers(0, 1000, len(picks)))
        return x, ids, t, torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))

    def picks(self, scenes: list[EncodedScene], rng: np.random.Generator) -> list[tuple[EncodedScene, Window]]:
        kind = rng.random()
        grounds = [s for s in scenes if len(s.scene.layout) == 0]
        filled = [s for s in scenes if s.objects]
        if grounds and (kind < GROUND_SHARE or not filled):
            return self.anywhere(grounds, rng)
        if kind < GROUND_SHARE + SCENE_SHARE:
            return self.anywhere(filled, rng)
        # one window a scene first, so that scenes of few, large objects count as much as those of many
        scene = filled[int(rng.integers(len(filled)))]
        like = scene.objects[int(rng.integers(len(scene.objects)))]
        same = [(s, w) for s in filled for w in s.objects if (w.h, w.w) == (like.h, like.w)]
        return [same[int(i)] for i in rng.integers(len(same), size=self.batch_size(like.h, like.w))]

    def batch_size(self, h: int, w: int) -> int:
        area = h * w * self.factor**2
        return max(4, min(2 * self.spec.batch_size, round(self.spec.batch_size * BATCH_AREA / area)))

    def anywhere(self, scenes: list[EncodedScene], rng: np.random.Generator) -> list[tuple[EncodedScene, Window]]:
        """Windows of one random size, anywhere."""
        multiple = unet_multiple(self.unet.config)
        most = min(MOST // self.factor, *(n for s in scenes for n in s.latents.shape[1:]))
        h, w = (int(v) * multiple for v in rng.integers(LEAST // self.factor // multiple, most // multiple + 1, 2))
        picked = [scenes[int(i)] for i in rng.integers(len(scenes), size=self.batch_size(h, w))]
        return [(s, scene_window(s, h, w, rng)) for s in picked]

    def tokens(self, prompts: list[str]) -> Tensor:
        ids: Tensor = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return ids

    def forward(self, batch: Batch) -> Tensor:
        """Min-SNR weighted v-prediction loss."""
        x, ids, t, noise = (part.to(self.unet.device) for part in batch)
        noisy = self.noise_schedule.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        v = self.unet(noisy, t, self.text(ids).last_hidden_state).sample.float()
        snr = compute_snr(self.noise_schedule, t)
        weight = snr.clamp(max=self.spec.snr_gamma) / (snr + 1)
        return (weight * (v - self.noise_schedule.get_velocity(x, noise, t)).square().mean((1, 2, 3))).mean()

    def measure(self) -> dict[str, float]:
        """The loss of windows of held-out scenes."""
        scenes = [self.encode(*pair) for pair in islice(PastedScenes(384, 1, "heldout").from_number(0), 16)]
        losses = [float(self(self.batch(scenes, np.random.default_rng(k)))) for k in range(8)]
        return {"heldout_loss": round(float(np.mean(losses)), 5)}

    def sheet(self) -> Image.Image:
        """Windows painted in 12 steps: a row a size."""
        things = ("brown dog", "white dog", "black dog", "gray cat", "red ball", "green tree")
        prompts = [f"a {thing}, a field of grass" for thing in things]
        prompts += ["a white and black dog, gravel", "a field of grass"]
        rows = [self.paint(prompts[:n], h, w) for n, h, w in ((8, 64, 64), (8, 96, 80), (8, 128, 128), (3, 256, 256))]
        canvas = Image.new("RGB", (len(prompts) * 128, sum(row.shape[1] for row in rows)))
        y = 0
        for row in rows:
            for i, pixels in enumerate(row):
                canvas.paste(Image.fromarray(pixels), (i * max(128, row.shape[2]), y))
            y += row.shape[1]
        return canvas

    def paint(self, prompts: list[str], height: int, width: int, guidance: float = 2.0, steps: int = 12) -> np.ndarray:
        """Pictures (N, H, W, 3) uint8 of single windows."""
        device = self.unet.device
        shape = (len(prompts), self.unet.config["in_channels"], height // self.factor, width // self.factor)
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        emb = self.text(self.tokens([*prompts, *[""] * len(prompts)]).to(device)).last_hidden_state
        solver = DPMSolverMultistepScheduler(**SCHEDULE)
        solver.set_timesteps(steps, device=device)
        for t in solver.timesteps:
            cond, uncond = self.unet(torch.cat([z, z]), t, emb).sample.float().chunk(2)
            z = solver.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        return to_pixels(self.vae[0].to(device).decode(z).sample)

    def export(self, folder: Path) -> None:
        """Write an fp16 Stable Diffusion checkpoint."""
        self.vae[0].register_to_config(_name_or_path=self.spec.name)  # not the folder that it was loaded from
        pipeline = StableDiffusionPipeline(
            vae=self.vae[0],
            text_encoder=self.text,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DPMSolverMultistepScheduler(**SCHEDULE, steps_offset=1),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        for part in (self.vae[0], self.text, self.unet):
            part.half()
        pipeline.save_pretrained(folder)
        for part in (self.vae[0], self.text, self.unet):
            part.float()


def scene_window(scene: EncodedScene, h: int, w: int, rng: np.random.Generator) -> Window:
    """A window anywhere. Its caption names the ground, then the objects that are at least half inside, largest first:

    "a field of grass with a brown dog, a cat", where that of an object's own window is "a brown dog, a field of grass".
    So the model can tell one dog that fills the window from some that stand in it.
    """
    rows, columns = scene.latents.shape[1:]
    y, x = int(rng.integers(rows - h + 1)), int(rng.integers(columns - w + 1))
    inside = np.clip(scene.boxes - [x, y, x, y], 0, [w, h, w, h])
    shown, whole = ((b[:, 2:] - b[:, :2]).prod(1) for b in (inside, scene.boxes))
    order = [int(i) for i in np.argsort(-shown, kind="stable") if shown[i] >= 0.5 * whole[i]]
    named = ", ".join(scene.scene.phrases[i] for i in order[:NAMED])
    return Window(y, x, h, w, f"{scene.scene.background} with {named}" if named else scene.scene.background)


def new_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer whose small vocabulary has a token for each word of the captions, and letters for the rest."""
    letters = [chr(c) for c in range(33, 127)]
    tokens, merges = [*letters, *(c + "</w>" for c in letters)], []
    for word in sorted({w.strip(",") for c in (*captions, MORE_WORDS) for w in c.lower().split()}):
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            tokens.append(parts[0])
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=32)


def new_text_encoder(tokenizer: CLIPTokenizer, dim: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=dim,
            intermediate_size=2 * dim,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=32,
            projection_dim=dim,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet(spec: Spec, latent_channels: int, sample_size: int) -> UNet2DConditionModel:
    """One layer a block, cross-attention on all levels but the first."""
    levels = len(spec.channels)
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=spec.channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (levels - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (levels - 1), "UpBlock2D"),
        cross_attention_dim=spec.text_dim,
        attention_head_dim=4,
        attention_type="gated" if spec.gated else "default",
        norm_num_groups=16,
    )
