"""Training on a few pictures of new classes: DreamBooth (Ruiz et al., arXiv 2208.12242) for several classes, one after another.

Each identifier becomes a word of the tokenizer; its embedding is that of its category at first, and is trained (textual
inversion, arXiv 2208.01618). What is to stay as it is (the plain categories, the classes learnt earlier, bare ground) is
rehearsed on pictures that the checkpoint painted before the training: prior preservation.
"""

import json
import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from synthgen.annotations import DEFAULT_PHRASE, default_phrase
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.models import CONCEPTS, find_checkpoint, find_model
from synthgen.pipelines.diffusion.pipeline import load_pipeline, read_pipeline
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.paste import CutOut
from synthgen.randomness import Stream, seed_sequence, torch_seed
from synthgen.scenes.scene import Scene
from synthgen.storage.local import replacing, write_text
from synthgen.training.augmentation import Picture
from synthgen.training.dreambooth import (
    Concept,
    NewConcept,
    Spec,
    earlier_concepts,
    is_cutout,
    window_of,
)
from synthgen.training.lora import add_lora, merged
from synthgen.training.scenes import PastedScenes, relight
from synthgen.training.vae.trainee import to_pixels
from synthgen.training.windows import EncodedScene, Window, WindowTrainee, is_gated, save_checkpoint

ANYWHERE_SHARE = 0.25  # of the prior's batches: any window, with the names of all that is in it
PHOTO_CROP = 0.85  # least share of a photograph's shorter side that is seen
TEXT_LORA = ["q_proj", "k_proj", "v_proj", "out_proj"]
SHEET_BOXES = 4
WORDS = "trainable_tokens"  # in the names of the parameters that are embeddings of new words

Part = tuple[Tensor, Tensor, Tensor, Tensor]
Batch = tuple[Part, Part]


class ConceptScenes:
    """Pictures of the new classes: number k is always the same.

    Cut-outs are pasted at boxes over grounds, all classes in one picture; a photograph is a picture of its own.
    """

    def __init__(self, spec: Spec, folder: Path, seed: int) -> None:
        self.side, self.sizes, self.seed, self.window = (
            spec.data.side,
            spec.sizes_px(folder),
            seed,
            window_of(folder),
        )
        pasted = PastedScenes(self.side, seed, spec.data.pasted)
        self.painter, self.grounds = pasted.painter, pasted.grounds
        cut = {c.name: c.files for c in spec.concepts if is_cutout(c.files[0])}
        self.painter.cutouts = {name: [CutOut(f) for f in files] for name, files in cut.items()}
        self.photos = [(c, file) for c in spec.concepts if c.name not in cut for file in c.files]
        self.photo_share = 1 - len(cut) / len(spec.concepts)

    def from_number(self, start: int) -> Iterator[tuple[Scene, Picture]]:
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, Picture]:
        rng = np.random.default_rng(seed_sequence(self.seed, k, Stream.CONCEPT_SCENE))
        if rng.random() < self.photo_share:
            return self.photograph(*self.photos[int(rng.integers(len(self.photos)))], rng)
        scene = self.scene(tuple(self.painter.cutouts), (DEFAULT_PHRASE,), rng)
        return scene, relight(self.painter.paint(scene, rng).image, rng)

    def scene(
        self, names: Sequence[str], prompts: Sequence[str], rng: np.random.Generator
    ) -> Scene:
        """Boxes of these categories, drawn evenly, on about a third of the picture; none if there are no names."""
        low, high = self.sizes
        least = float(rng.uniform(low, high))
        size = (least, min(1.2 * least, self.side))
        room = max(1, int(self.side**2 * rng.uniform(0.15, 0.4) / (least + 12) ** 2))
        drawn = rng.multinomial(room, np.full(len(names), 1 / len(names))).tolist() if names else []
        objects = dict(zip(names, drawn, strict=True))
        layout = ScatterSpec(
            canvas=(self.side, self.side), objects=objects, size=size, gap=8
        ).sample(rng)
        phrases = tuple(
            prompts[int(rng.integers(len(prompts)))].format(category=name)
            for name in layout.categories
        )
        return Scene(layout.with_phrases(phrases), self.ground(rng))

    def ground(self, rng: np.random.Generator) -> str:
        """Words of a ground; none where photographs alone are learnt, which are on grounds without a name."""
        return self.grounds[int(rng.integers(len(self.grounds)))] if self.painter.cutouts else ""

    def photograph(
        self, concept: NewConcept, file: Path, rng: np.random.Generator
    ) -> tuple[Scene, Picture]:
        """A square of a photograph, at the size of a window: all of it is the object."""
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            side = min(image.size) * rng.uniform(PHOTO_CROP, 1)
            x, y = (rng.uniform(0, n - side) for n in image.size)
            box, to = (x, y, x + side, y + side), (self.window, self.window)
            square = np.array(image.convert("RGB").resize(to, Image.Resampling.LANCZOS, box))
        whole = np.array([[0, 0, self.window, self.window]], np.float32)
        layout = Layout(*to, whole, (concept.name,), (default_phrase(concept.name),))
        return Scene(layout, ""), np.fliplr(square).copy() if rng.random() < 0.5 else square


class DreamBoothTrainee(WindowTrainee):
    """UNet and new words; forward is the loss of one batch: a part of the new classes and a part of what is to be kept,

    each latents, token ids, timesteps and noise.
    """

    def __init__(self, spec: Spec) -> None:
        self.folder = find_model(spec.init)
        found: Any = read_pipeline(MixturePipeline, find_checkpoint(spec.init), torch.float32)
        words = add_words(found.tokenizer, found.text_encoder, spec.concepts)
        text = with_adapter(found.text_encoder, words, spec)
        super().__init__(spec, found.unet, text, found.tokenizer, found.vae, found.scheduler)
        self.earlier, self.words = earlier_concepts(self.folder), words
        self.scenes = self.concepts = ConceptScenes(spec, self.folder, spec.seed + 1)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(spec.lora is None and not is_gated(name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)

    def groups(self) -> list[dict[str, Any]]:
        """The new words learn fastest: what sets a class apart is to be in its word, not in what all dogs look like."""
        trained = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        words, rest = (
            [p for name, p in trained if (WORDS in name) == own] for own in (True, False)
        )
        return [{"params": words, "rate": self.spec.word_rate}, {"params": rest}]

    @property
    def kept(self) -> list[tuple[str, tuple[str, ...]]]:
        """What is to stay as it is, with what it is prompted by: plain categories, earlier classes, and bare ground."""
        plain = dict.fromkeys(c.category for c in (*self.spec.concepts, *self.earlier))
        earlier = [(c.name, (DEFAULT_PHRASE,)) for c in self.earlier]
        return [*((name, self.spec.prior_prompts) for name in plain), *earlier, ("", ())]

    @cached_property
    def prior(self) -> list[EncodedScene]:
        """Scenes of what is to be kept, painted by the checkpoint as it was: once for each run."""
        drawn = list(self.prior_scenes())
        file = Path(self.spec.output.path).absolute() / "prior.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            latents = self.paint_prior(drawn)
            self.show_prior(latents, file.with_suffix(".png"))
            with replacing(file) as temporary:
                save_file({f"{k:06d}": z for k, z in enumerate(latents)}, temporary)
        painted = load_file(file)
        return [self.with_windows(scene, painted[f"{k:06d}"]) for k, scene in enumerate(drawn)]

    def prior_scenes(self) -> Iterator[Scene]:
        for n, (name, prompts) in enumerate(self.kept):
            for k in range(self.spec.prior_images):
                rng = np.random.default_rng(seed_sequence(self.spec.seed, k, Stream.PRIOR_SCENE, n))
                yield self.concepts.scene((name,) if name else (), prompts, rng)

    def paint_prior(self, scenes: Sequence[Scene]) -> list[Tensor]:
        """Latents (C, H, W) float16 of scenes, by the checkpoint before it is trained."""
        device = self.unet.device.type
        pipeline = load_pipeline(
            MixturePipeline, MixtureSpec(model=self.spec.init), "dpm++", Numerics(device=device)
        )
        options = {
            "num_inference_steps": self.spec.prior_steps,
            "guidance_scale": self.spec.prior_guidance,
        }
        options |= {
            "background_guidance_scale": 1.0,
            "background_window": min(self.concepts.side, 4 * self.concepts.window),
        }
        painted = []
        for k, scene in enumerate(
            tqdm(scenes, "painting what is to be kept", unit="picture", disable=None)
        ):
            seed = torch_seed(seed_sequence(self.spec.seed, k, Stream.PRIOR_NOISE))
            generator = torch.Generator().manual_seed(seed)
            z: Any = pipeline(
                [scene.layout],
                scene.background,
                generator=generator,
                output_type="latent",
                **options,
            )
            painted.append(z[0].half().cpu())
        return painted

    def show_prior(self, latents: Sequence[Tensor], file: Path) -> None:
        """A picture of the first scenes of each kind: a row a kind."""
        shown, every = min(SHEET_BOXES, self.spec.prior_images), self.spec.prior_images
        rows = [latents[k : k + shown] for k in range(0, len(latents), every)]
        sheet = np.concatenate([np.concatenate([self.decoded(z) for z in row], 1) for row in rows])
        Image.fromarray(sheet).save(file)

    @torch.no_grad()
    def decoded(self, z: Tensor) -> Picture:
        vae = self.vae[0].to(self.unet.device)
        picture: Picture = to_pixels(
            vae.decode(z[None].to(vae.device, vae.dtype) / vae.config.scaling_factor).sample
        )[0]
        return picture

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of the new classes, and windows of what is to be kept."""
        filled = [s for s in self.prior if s.objects]
        kept = (
            self.anywhere(self.prior, rng)
            if rng.random() < ANYWHERE_SHARE
            else self.same_sized(filled, rng)
        )
        new = self.same_sized([s for s in scenes if s.objects], rng)
        return self.part(new, rng, 0), self.part(kept, rng, self.spec.prompt_dropout)

    def part(
        self, picks: list[tuple[EncodedScene, Window]], rng: np.random.Generator, dropout: float
    ) -> Part:
        x = torch.stack([s.latents[:, w.y : w.y + w.h, w.x : w.x + w.w] for s, w in picks]).float()
        dropped = rng.random(len(picks)) < dropout
        ids = self.tokens(
            ["" if d else w.caption for d, (_, w) in zip(dropped, picks, strict=True)]
        )
        t = torch.from_numpy(
            rng.integers(0, self.noise_schedule.config.num_train_timesteps, len(picks))
        )
        return x, ids, t, torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))

    def batch_size(self, h: int, w: int) -> int:
        return max(
            1,
            round(self.spec.batch_size * min(1.0, self.unet.config["sample_size"] ** 2 / (h * w))),
        )

    def forward(self, batch: Batch) -> Tensor:
        """L = loss of the new classes + prior_weight * loss of what is to be kept (arXiv 2208.12242, equation 2)."""
        new, kept = batch
        return self.part_loss(new) + self.spec.prior_weight * self.part_loss(kept)

    def part_loss(self, part: Part) -> Tensor:
        x, ids, t, noise = (tensor.to(self.unet.device) for tensor in part)
        prediction = self.unet(self.noisy(x, noise, t), t, self.text(ids).last_hidden_state).sample
        return self.loss(prediction, x, noise, t)

    def measure(self) -> dict[str, float]:
        """Losses of the new classes, in pastes that are not trained on, and of what is to be kept."""
        scenes = [self.encode(*pair) for pair in islice(self.scenes.from_number(10**6), 8)]
        rngs = [np.random.default_rng(seed_sequence(0, k, Stream.HELD_OUT)) for k in range(8)]
        parts = [self.batch(scenes, rng) for rng in rngs]
        new, kept = (
            float(np.mean([float(self.part_loss(part)) for part in own]))
            for own in zip(*parts, strict=True)
        )
        return {"concept_loss": round(new, 5), "prior_loss": round(kept, 5)}

    def sheet(self) -> Image.Image:
        """One picture of all classes, a row each: the new ones, the earlier ones, the plain categories."""
        names = [
            *(c.name for c in self.spec.concepts),
            *(name for name, _ in reversed(self.kept) if name),
        ]
        cell = (
            -(-5 * self.unet.config["sample_size"] // 16) * 4 * self.factor
        )  # a window and a quarter
        box = np.array([0.12, 0.2, 0.88, 0.8]) * cell
        boxes = [
            box + cell * np.array([x, y, x, y])
            for y in range(len(names))
            for x in range(SHEET_BOXES)
        ]
        categories = tuple(name for name in names for _ in range(SHEET_BOXES))
        layout = Layout(
            SHEET_BOXES * cell, len(names) * cell, np.array(boxes, np.float32), categories
        )
        parts = (
            self.vae[0].to(self.unet.device),
            self.text,
            self.tokenizer,
            self.unet,
            deepcopy(self.solver),
        )
        pipeline = MixturePipeline(*parts)
        pipeline.set_progress_bar_config(disable=True)
        options = {
            "num_inference_steps": self.spec.prior_steps,
            "guidance_scale": self.spec.prior_guidance,
        }
        words = "a field of grass" if self.concepts.painter.cutouts else ""
        sheet: Any = pipeline(
            [layout], words, generator=torch.Generator().manual_seed(0), **options
        )
        return sheet[0]

    def export(self, folder: Path) -> None:
        """Write a checkpoint with all its classes; a LoRA is merged into it, and stands beside it too."""
        unet, text = merged(self.unet, folder / "lora"), deepcopy(self.text).merge_and_unload()
        save_checkpoint(
            folder, self.spec.name, self.vae[0], text, self.tokenizer, unet, self.solver
        )
        known = [*self.earlier, *self.spec.concepts]
        entries = [{"identifier": c.identifier, "category": c.category} for c in known]
        write_text(folder / CONCEPTS, json.dumps(entries, indent=1) + "\n")


def add_words(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, concepts: Sequence[Concept]
) -> list[int]:
    """Make each identifier one word, that reads like its category at first; returns their token ids."""
    own = [tokenizer(c.category, add_special_tokens=False).input_ids for c in concepts]
    tokenizer.add_tokens([c.identifier for c in concepts])
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if (
        text.config.eos_token_id == 2
    ):  # old checkpoints: the pooled token is then the one of the highest id, which is now new
        text.config.eos_token_id = tokenizer.eos_token_id
    ids: list[int] = tokenizer.convert_tokens_to_ids([c.identifier for c in concepts])
    embedding = text.get_input_embeddings().weight.data
    for new, old in zip(ids, own, strict=True):
        embedding[new] = embedding[old].mean(0)
    return ids


def with_adapter(text: CLIPTextModel, words: list[int], spec: Spec) -> CLIPTextModel:
    """The text encoder with the embeddings of these words trainable, and what else of it the job says."""
    if spec.train_text_encoder and spec.lora is not None:
        rank = spec.lora.rank
        tokens = {"token_embedding": words}
        return get_peft_model(
            text,
            LoraConfig(
                r=rank, lora_alpha=rank, target_modules=TEXT_LORA, trainable_token_indices=tokens
            ),
        )
    adapted = get_peft_model(
        text, TrainableTokensConfig(token_indices=words, target_modules=["token_embedding"])
    )
    for name, weight in adapted.named_parameters():
        if spec.train_text_encoder and not re.search("token_embedding", name):
            weight.requires_grad_(True)
    return adapted
