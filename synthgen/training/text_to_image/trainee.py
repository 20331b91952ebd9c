"""Training of a UNet and a text encoder on windows of scenes."""

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from synthgen.errors import InputError
from synthgen.pipelines.diffusion.checkpoint import Checkpoint
from synthgen.pipelines.diffusion.models import find_checkpoint, vae_factor
from synthgen.training.scenes import open_scenes
from synthgen.training.text_to_image import Spec
from synthgen.training.vae.trainee import to_pixels
from synthgen.training.windows import LEAST, EncodedScene, Window, WindowTrainee, is_gated

GROUND_SHARE, SCENE_SHARE = (
    0.2,
    0.08,
)  # of the batches: ground alone; any window, with the names of all that is in it
CAPTIONS_READ = 128  # scenes whose words a new tokenizer knows
MORE_WORDS = "in on with standing sitting running lying field lawn golden gray red green blue yellow orange sunny dark"

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


class TextToImageTrainee(WindowTrainee):
    """UNet and text encoder; forward is the loss of one batch: latents, token ids, timesteps, noise."""

    def __init__(self, spec: Spec) -> None:
        vae = AutoencoderKL.from_pretrained(spec.vae_folder, use_safetensors=True)
        read = (
            scene
            for scene, _ in islice(
                open_scenes(spec.data, spec.seed + 1).from_number(0), CAPTIONS_READ
            )
        )
        tokenizer = new_tokenizer(c for scene in read for c in (*scene.phrases, scene.background))
        unet = new_unet(spec, vae.config["latent_channels"], LEAST // vae_factor(vae.config))
        super().__init__(spec, unet, new_text_encoder(tokenizer, spec.text_dim), tokenizer, vae)
        if spec.init is not None:
            self.start_from(find_checkpoint(spec.init))
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(not is_gated(name))

    def start_from(self, checkpoint: Checkpoint) -> None:
        """Take over the weights of a checkpoint; words that its tokenizer knows keep their embeddings.

        Raises:
            InputError: its networks are of other sizes than the job's.
        """
        folder, variants = (
            checkpoint.folder,
            {part: weights.variant for part, weights in checkpoint.weights.items()},
        )
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", variant=variants["unet"]
        ).state_dict()
        text = CLIPTextModel.from_pretrained(
            folder / "text_encoder", variant=variants["text_encoder"]
        ).state_dict()
        words, known = (
            self.tokenizer.get_vocab(),
            CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").get_vocab(),
        )
        name = next(n for n in text if n.endswith("token_embedding.weight"))
        theirs, embedding = text.pop(name), self.text.state_dict()[name].clone()
        for key, part, weights in (("text_dim", self.text, text), ("channels", self.unet, unet)):
            mine = part.state_dict()
            if other := [n for n in weights if n not in mine or weights[n].shape != mine[n].shape]:
                raise InputError(
                    f"init: {self.spec.init}: not of the job's {key}: {len(other)} layers differ, such as {other[0]}"
                )
        shared = [w for w in words if w in known]
        embedding[[words[w] for w in shared]] = theirs[[known[w] for w in shared]].float()
        self.unet.load_state_dict({**self.unet.state_dict(), **unet})
        self.text.load_state_dict({**text, name: embedding})

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random kind and size, with the noise they get."""
        picks = self.picks(scenes, rng)
        x = torch.stack([s.latents[:, w.y : w.y + w.h, w.x : w.x + w.w] for s, w in picks]).float()
        dropped = rng.random(len(picks)) < self.spec.prompt_dropout
        ids = self.tokens(
            ["" if d else w.caption for d, (_, w) in zip(dropped, picks, strict=True)]
        )
        t = torch.from_numpy(rng.integers(0, 1000, len(picks)))
        return x, ids, t, torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))

    def picks(
        self, scenes: list[EncodedScene], rng: np.random.Generator
    ) -> list[tuple[EncodedScene, Window]]:
        kind = rng.random()
        grounds = [s for s in scenes if len(s.scene.layout) == 0]
        filled = [s for s in scenes if s.objects]
        if grounds and (kind < GROUND_SHARE or not filled):
            return self.anywhere(grounds, rng)
        if kind < GROUND_SHARE + SCENE_SHARE:
            return self.anywhere(filled, rng)
        return self.same_sized(filled, rng)

    def forward(self, batch: Batch) -> Tensor:
        """Min-SNR weighted loss."""
        x, ids, t, noise = (part.to(self.unet.device) for part in batch)
        v = self.unet(self.noisy(x, noise, t), t, self.text(ids).last_hidden_state).sample
        return self.loss(v, x, noise, t)

    def measure(self) -> dict[str, float]:
        """The loss of windows of held-out scenes."""
        return {
            "heldout_loss": round(
                float(np.mean([float(self(batch)) for batch in self.held_out()])), 5
            )
        }

    def sheet(self) -> Image.Image:
        """Windows painted in 12 steps: a row a size."""
        things = ("brown dog", "white dog", "black dog", "gray cat", "red ball", "green tree")
        prompts = [f"a {thing}, a field of grass" for thing in things]
        prompts += ["a white and black dog, gravel", "a field of grass"]
        rows = [
            self.paint(prompts[:n], h, w)
            for n, h, w in ((8, 64, 64), (8, 96, 80), (8, 128, 128), (3, 256, 256))
        ]
        canvas = Image.new("RGB", (len(prompts) * 128, sum(row.shape[1] for row in rows)))
        y = 0
        for row in rows:
            for i, pixels in enumerate(row):
                canvas.paste(Image.fromarray(pixels), (i * max(128, row.shape[2]), y))
            y += row.shape[1]
        return canvas

    def paint(
        self, prompts: list[str], height: int, width: int, guidance: float = 2.0, steps: int = 12
    ) -> np.ndarray:
        """Pictures (N, H, W, 3) uint8 of single windows."""
        device = self.unet.device
        shape = (
            len(prompts),
            self.unet.config["in_channels"],
            height // self.factor,
            width // self.factor,
        )
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        emb = self.text(self.tokens([*prompts, *[""] * len(prompts)]).to(device)).last_hidden_state
        solver = self.solver
        solver.set_timesteps(steps, device=device)
        for t in solver.timesteps:
            cond, uncond = self.unet(torch.cat([z, z]), t, emb).sample.float().chunk(2)
            z = solver.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        return to_pixels(self.vae[0].to(device).decode(z).sample)


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
    vocabulary = {
        token: i
        for i, token in enumerate(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    }
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
