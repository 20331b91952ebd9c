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
from synthgen.pipelines.diffusion.sizes import compute_vae_factor
from synthgen.pipelines.diffusion.sources import find_checkpoint
from synthgen.training.scenes import Scenes, open_scenes
from synthgen.training.text_to_image import Spec
from synthgen.training.vae.trainee import to_pixels
from synthgen.training.windows import (
    MIN_SIDE,
    Crop,
    EncodedScene,
    WindowTrainee,
    crop_latents,
    drop_captions,
    is_gated,
)

BACKGROUND_SHARE = 0.2  # share of batches with windows of the background alone
SCENE_SHARE = 0.08  # share of batches with any windows, captioned with the objects in them
CAPTION_SCENES = 128  # scenes whose words a new tokenizer gets
MORE_WORDS = (
    "in on with standing sitting running lying field lawn golden gray red green blue yellow "
    "orange sunny dark"
)
SHEET_OBJECTS = ("brown dog", "white dog", "black dog", "gray cat", "red ball", "green tree")

Batch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Latents (B, C, h, w), token ids (B, T), timesteps (B,) and noise (B, C, h, w)."""


class TextToImageTrainee(WindowTrainee):
    """UNet and text encoder; forward returns the loss of one batch."""

    def __init__(self, spec: Spec) -> None:
        vae = AutoencoderKL.from_pretrained(spec.vae_folder, use_safetensors=True)
        tokenizer = make_tokenizer(read_captions(open_scenes(spec.data, spec.seed + 1)))
        unet = make_unet(
            spec, vae.config["latent_channels"], MIN_SIDE // compute_vae_factor(vae.config)
        )
        super().__init__(spec, unet, make_text_encoder(tokenizer, spec.text_dim), tokenizer, vae)
        if spec.init is not None:
            self.load_weights(find_checkpoint(spec.init))
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(not is_gated(name))

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Load the weights of a checkpoint.

        Words that its tokenizer knows keep their embeddings.

        Raises:
            InputError: the sizes of its networks are not those of the job.
        """
        folder = checkpoint.folder
        unet = UNet2DConditionModel.from_pretrained(
            folder / "unet", variant=checkpoint.weights["unet"].variant
        ).state_dict()
        text = CLIPTextModel.from_pretrained(
            folder / "text_encoder", variant=checkpoint.weights["text_encoder"].variant
        ).state_dict()
        key = next(name for name in text if name.endswith("token_embedding.weight"))
        old_embedding = text.pop(key)
        self._check_shapes("text_dim", self.text.state_dict(), text)
        self._check_shapes("channels", self.unet.state_dict(), unet)
        embedding = self.text.state_dict()[key].clone()
        old_ids = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer").get_vocab()
        for word, number in self.tokenizer.get_vocab().items():
            if word in old_ids:
                embedding[number] = old_embedding[old_ids[word]].float()
        self.unet.load_state_dict({**self.unet.state_dict(), **unet})
        self.text.load_state_dict({**text, key: embedding})

    def _check_shapes(self, key: str, new: dict[str, Tensor], old: dict[str, Tensor]) -> None:
        """Raise InputError if weights of the checkpoint do not fit into the job's network."""
        differing = []
        for name, weight in old.items():
            if name not in new or weight.shape != new[name].shape:
                differing.append(name)
        if differing:
            raise InputError(
                f"init: {self.spec.init}: not of the job's {key}: {len(differing)} layers differ, "
                f"such as {differing[0]}"
            )

    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Return windows of one random kind and size, with noise for them."""
        crops = self.choose_crops(scenes, rng)
        x = crop_latents(crops)
        dropped = rng.random(len(crops)) < self.spec.prompt_dropout
        ids = self.tokenize(drop_captions(crops, dropped))
        t = rng.integers(0, 1000, len(crops))
        noise = rng.standard_normal(tuple(x.shape), np.float32)
        return x, ids, torch.from_numpy(t), torch.from_numpy(noise)

    def choose_crops(self, scenes: list[EncodedScene], rng: np.random.Generator) -> list[Crop]:
        """Return windows of backgrounds, of whole scenes, or of single objects."""
        kind = rng.random()
        backgrounds = [scene for scene in scenes if len(scene.scene.layout) == 0]
        with_objects = [scene for scene in scenes if scene.object_windows]
        if backgrounds and (kind < BACKGROUND_SHARE or not with_objects):
            return self.sample_crops(backgrounds, rng)
        if kind < BACKGROUND_SHARE + SCENE_SHARE:
            return self.sample_crops(with_objects, rng)
        return self.sample_object_crops(with_objects, rng)

    def forward(self, batch: Batch) -> Tensor:
        """Return the min-SNR weighted loss."""
        x, ids, t, noise = (tensor.to(self.unet.device) for tensor in batch)
        words = self.text(ids).last_hidden_state
        v = self.predict(self.add_noise(x, noise, t), t, words)
        return self.loss(v, x, noise, t)

    def measure(self) -> dict[str, float]:
        """Return the mean loss of held-out windows."""
        losses = [float(self(batch)) for batch in self.held_out_batches()]
        return {"heldout_loss": round(float(np.mean(losses)), 5)}

    def render_sheet(self) -> Image.Image:
        """Return windows that are generated in 12 steps, a row for each size."""
        prompts = [f"a {name}, a field of grass" for name in SHEET_OBJECTS]
        prompts += ["a white and black dog, gravel", "a field of grass"]
        rows = []
        for number, height, width in ((8, 64, 64), (8, 96, 80), (8, 128, 128), (3, 256, 256)):
            rows.append(self.generate(prompts[:number], height, width))
        sheet = Image.new("RGB", (len(prompts) * 128, sum(row.shape[1] for row in rows)))
        y = 0
        for row in rows:
            for i, pixels in enumerate(row):
                sheet.paste(Image.fromarray(pixels), (i * max(128, row.shape[2]), y))
            y += row.shape[1]
        return sheet

    def generate(
        self, prompts: list[str], height: int, width: int, guidance: float = 2.0, steps: int = 12
    ) -> np.ndarray:
        """Return images (N, H, W, 3) uint8 of single windows."""
        device = self.unet.device
        shape = (
            len(prompts),
            self.unet.config["in_channels"],
            height // self.factor,
            width // self.factor,
        )
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        ids = self.tokenize([*prompts, *[""] * len(prompts)]).to(device)
        words = self.text(ids).last_hidden_state
        solver = self.solver
        solver.set_timesteps(steps, device=device)
        for t in solver.timesteps:
            predicted = self.unet(torch.cat([z, z]), t, words).sample.float()
            cond, uncond = predicted.chunk(2)
            z = solver.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        return to_pixels(self.vae[0].to(device).decode(z).sample)


def read_captions(scenes: Scenes) -> list[str]:
    """Return the phrases and backgrounds of the first CAPTION_SCENES scenes."""
    captions: list[str] = []
    for scene, _ in islice(scenes.iterate_from(0), CAPTION_SCENES):
        captions += [*scene.phrases, scene.background]
    return captions


def make_tokenizer(captions: Iterable[str]) -> CLIPTokenizer:
    """Return a CLIP tokenizer with a small vocabulary.

    It has a token for each word of the captions, and letters for other words.
    """
    words = set()
    for caption in (*captions, MORE_WORDS):
        words |= {word.strip(",") for word in caption.lower().split()}
    letters = [chr(code) for code in range(33, 127)]
    tokens = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in sorted(words):
        token, *rest = [*word[:-1], word[-1] + "</w>"]
        for following in rest:
            merges.append((token, following))
            token += following
            tokens.append(token)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    unique = dict.fromkeys(tokens)
    vocabulary = {token: number for number, token in enumerate(unique)}
    return CLIPTokenizer(vocab=vocabulary, merges=list(dict.fromkeys(merges)), model_max_length=32)


def make_text_encoder(tokenizer: CLIPTokenizer, dim: int) -> CLIPTextModel:
    """Return a new text encoder of two layers, `dim` wide."""
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


def make_unet(spec: Spec, latent_channels: int, sample_size: int) -> UNet2DConditionModel:
    """Return a new UNet with one layer in each block, and cross-attention below the first level."""
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
