"""Training of new classes from a few images each (DreamBooth, Ruiz et al., arXiv 2208.12242).

Several classes can be trained at once, and one after another. Each identifier becomes a word of the
tokenizer. Its embedding starts as that of its category, and is trained (textual inversion, arXiv
2208.01618). Prior preservation keeps what the checkpoint generates for the plain categories, for
classes of earlier trainings, and for backgrounds without objects: images of them, which the
checkpoint generated before the training, are trained on too.
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, TrainableTokensConfig, get_peft_model
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from synthgen.annotations import DEFAULT_PHRASE, build_default_phrase
from synthgen.layouts.base import Layout
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.base import Numerics
from synthgen.pipelines.diffusion.pipeline import load_pipeline, read_pipeline
from synthgen.pipelines.diffusion.sources import CONCEPTS, find_checkpoint, find_model
from synthgen.pipelines.mixture import Spec as MixtureSpec
from synthgen.pipelines.mixture.pipeline import MixturePipeline
from synthgen.pipelines.paste import CutOut
from synthgen.randomness import Stream, make_torch_seed, seed_sequence
from synthgen.scenes.scene import Scene
from synthgen.storage.local import replace_atomically, write_text
from synthgen.training.augmentation import ImageArray
from synthgen.training.dreambooth import (
    Concept,
    NewConcept,
    Spec,
    is_cutout,
    read_concepts,
    read_window_size,
)
from synthgen.training.lora import add_lora, merge_lora
from synthgen.training.scenes import GRASS, PastedScenes, relight
from synthgen.training.vae.trainee import to_pixels
from synthgen.training.windows import (
    Crop,
    EncodedScene,
    WindowTrainee,
    crop_latents,
    drop_captions,
    is_gated,
    save_checkpoint,
)

SCENE_SHARE = 0.25  # share of the prior's batches with any windows of scenes
MIN_PHOTO_CROP = 0.85  # smallest crop of a photograph, as a share of its shorter side
TEXT_LORA = ["q_proj", "k_proj", "v_proj", "out_proj"]
SHEET_COLUMNS = 4
TOKENS = "trainable_tokens"  # part of the names of the identifiers' embeddings
MEASURED_SCENES = 8
MEASURED_BATCHES = 8
FIRST_MEASURED = 10**6  # number of the first scene to measure on, far beyond those trained on

HalfBatch = tuple[Tensor, Tensor, Tensor, Tensor]
"""Latents (B, C, h, w), token ids (B, T), timesteps (B,) and noise (B, C, h, w)."""
Batch = tuple[HalfBatch, HalfBatch]
"""Windows of the new classes, and windows of the prior."""


class PriorClass(NamedTuple):
    """What prior preservation keeps.

    Attributes:
        name: a category of layouts; empty: backgrounds without objects.
        prompts: the prompts of its objects.
    """

    name: str
    prompts: tuple[str, ...]


class ConceptScenes:
    """Scenes of the new classes; number k is always the same.

    Cut-outs of all classes are pasted into one image over a background; a photograph is an image of
    its own.
    """

    def __init__(self, spec: Spec, folder: Path, seed: int) -> None:
        self.side = spec.data.side
        self.sizes = spec.sizes_px(folder)
        self.seed = seed
        self.window = read_window_size(folder)
        pasted = PastedScenes(self.side, seed, spec.data.pasted)
        self.painter = pasted.painter
        self.painter.cutouts = {}
        self.backgrounds = pasted.backgrounds
        self.photos: list[tuple[NewConcept, Path]] = []
        for concept in spec.concepts:
            if is_cutout(concept.files[0]):
                self.painter.cutouts[concept.name] = [CutOut(file) for file in concept.files]
            else:
                self.photos += [(concept, file) for file in concept.files]
        self.photo_share = 1 - len(self.painter.cutouts) / len(spec.concepts)

    def iterate_from(self, start: int) -> Iterator[tuple[Scene, ImageArray]]:
        """Return an iterator over the scenes from number `start`."""
        return (self[k] for k in count(start))

    def __getitem__(self, k: int) -> tuple[Scene, ImageArray]:
        """Return scene number k."""
        rng = np.random.default_rng(seed_sequence(self.seed, k, Stream.CONCEPT_SCENE))
        if rng.random() < self.photo_share:
            concept, file = self.photos[int(rng.integers(len(self.photos)))]
            return self.crop_photo(concept, file, rng)
        scene = self.sample_scene(tuple(self.painter.cutouts), (DEFAULT_PHRASE,), rng)
        return scene, relight(self.painter.paint(scene, rng).image, rng)

    def sample_scene(
        self, names: Sequence[str], prompts: Sequence[str], rng: np.random.Generator
    ) -> Scene:
        """Return a scene whose boxes cover about a third of the image.

        Args:
            names: the categories of the boxes, all with the same probability; empty: no boxes.
            prompts: the prompts of the boxes, all with the same probability.
        """
        smallest = float(rng.uniform(*self.sizes))
        room = int(self.side**2 * rng.uniform(0.15, 0.4) / (smallest + 12) ** 2)
        objects: dict[str, int] = {}
        if names:
            shares = np.full(len(names), 1 / len(names))
            counts = rng.multinomial(max(1, room), shares).tolist()
            objects = dict(zip(names, counts, strict=True))
        spec = ScatterSpec(
            canvas=(self.side, self.side),
            objects=objects,
            size=(smallest, min(1.2 * smallest, self.side)),
            gap=8,
        )
        layout = spec.sample(rng)
        phrases = []
        for name in layout.categories:
            prompt = prompts[int(rng.integers(len(prompts)))]
            phrases.append(prompt.format(category=name))
        return Scene(layout.with_phrases(tuple(phrases)), self.sample_background(rng))

    def sample_background(self, rng: np.random.Generator) -> str:
        """Return the prompt of a background.

        It is empty if all classes are trained from photographs, whose backgrounds have no name.
        """
        if not self.painter.cutouts:
            return ""
        return self.backgrounds[int(rng.integers(len(self.backgrounds)))]

    def crop_photo(
        self, concept: NewConcept, file: Path, rng: np.random.Generator
    ) -> tuple[Scene, ImageArray]:
        """Return a square crop of a photograph at the size of a window; all of it is the object."""
        size = (self.window, self.window)
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            side = min(image.size) * rng.uniform(MIN_PHOTO_CROP, 1)
            x = rng.uniform(0, image.width - side)
            y = rng.uniform(0, image.height - side)
            box = (x, y, x + side, y + side)
            resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS, box)
        pixels = np.array(resized)
        boxes = np.array([[0, 0, self.window, self.window]], np.float32)
        layout = Layout(*size, boxes, (concept.name,), (build_default_phrase(concept.name),))
        if rng.random() < 0.5:
            pixels = np.fliplr(pixels).copy()
        return Scene(layout, ""), pixels


class DreamBoothTrainee(WindowTrainee):
    """UNet and identifiers; forward returns the loss of one batch."""

    def __init__(self, spec: Spec) -> None:
        self.folder = find_model(spec.init)
        pipeline: Any = read_pipeline(MixturePipeline, find_checkpoint(spec.init), torch.float32)
        self.words = add_identifiers(pipeline.tokenizer, pipeline.text_encoder, spec.concepts)
        text = add_adapter(pipeline.text_encoder, self.words, spec)
        super().__init__(
            spec, pipeline.unet, text, pipeline.tokenizer, pipeline.vae, pipeline.scheduler
        )
        self.earlier = read_concepts(self.folder)
        self.concepts = ConceptScenes(spec, self.folder, spec.seed + 1)
        self.scenes = self.concepts
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_(spec.lora is None and not is_gated(name))
        if spec.lora is not None:
            add_lora(self.unet, spec.lora.rank)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups.

        The identifiers have the highest learning rate: what is special about a class should be in
        its identifier, and not change what all dogs look like.
        """
        identifiers: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                group = identifiers if TOKENS in name else others
                group.append(parameter)
        return [{"params": identifiers, "rate": self.spec.word_rate}, {"params": others}]

    @property
    def prior_classes(self) -> list[PriorClass]:
        """Plain categories, classes of earlier trainings, and backgrounds without objects."""
        categories = [concept.category for concept in (*self.spec.concepts, *self.earlier)]
        plain = [PriorClass(name, self.spec.prior_prompts) for name in dict.fromkeys(categories)]
        earlier = [PriorClass(concept.name, (DEFAULT_PHRASE,)) for concept in self.earlier]
        return [*plain, *earlier, PriorClass("", ())]

    @cached_property
    def prior(self) -> list[EncodedScene]:
        """Scenes of the prior, generated once for each run by the checkpoint before training."""
        scenes = list(self.sample_prior_scenes())
        file = Path(self.spec.output.path).absolute() / "prior.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            latents = self.generate_prior(scenes)
            self.write_prior_sheet(latents, file.with_suffix(".png"))
            with replace_atomically(file) as temporary:
                save_file({f"{k:06d}": z for k, z in enumerate(latents)}, temporary)
        saved = load_file(file)
        return [self.add_windows(scene, saved[f"{k:06d}"]) for k, scene in enumerate(scenes)]

    def sample_prior_scenes(self) -> Iterator[Scene]:
        """Yield the scenes of the prior, class by class."""
        for n, (name, prompts) in enumerate(self.prior_classes):
            names = (name,) if name else ()
            for k in range(self.spec.prior_images):
                rng = np.random.default_rng(seed_sequence(self.spec.seed, k, Stream.PRIOR_SCENE, n))
                yield self.concepts.sample_scene(names, prompts, rng)

    def generate_prior(self, scenes: Sequence[Scene]) -> list[Tensor]:
        """Return latents (C, H, W) float16 that the checkpoint generates before training."""
        device = self.unet.device.type
        pipeline = load_pipeline(
            MixturePipeline, MixtureSpec(model=self.spec.init), "dpm++", Numerics(device=device)
        )
        progress = tqdm(scenes, "generating prior images", unit="image", disable=None)
        latents = []
        for k, scene in enumerate(progress):
            seed = make_torch_seed(seed_sequence(self.spec.seed, k, Stream.PRIOR_NOISE))
            z: Any = pipeline(
                [scene.layout],
                scene.background,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                num_inference_steps=self.spec.prior_steps,
                guidance_scale=self.spec.prior_guidance,
                background_guidance_scale=1.0,
                background_window=min(self.concepts.side, 4 * self.concepts.window),
            )
            latents.append(z[0].half().cpu())
        return latents

    def write_prior_sheet(self, latents: Sequence[Tensor], file: Path) -> None:
        """Write an image of the first scenes of each class of the prior, a row for each class."""
        columns = min(SHEET_COLUMNS, self.spec.prior_images)
        rows = []
        for start in range(0, len(latents), self.spec.prior_images):
            images = [self.decode(z) for z in latents[start : start + columns]]
            rows.append(np.concatenate(images, 1))
        Image.fromarray(np.concatenate(rows)).save(file)

    @torch.no_grad()
    def decode(self, z: Tensor) -> ImageArray:
        """Return the image (H, W, 3) of latents (C, H, W)."""
        vae = self.vae[0].to(self.unet.device)
        scaled = z[None].to(vae.device, vae.dtype) / vae.config.scaling_factor
        image: ImageArray = to_pixels(vae.decode(scaled).sample)[0]
        return image

    def make_batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Return windows of the new classes, and windows of the prior."""
        if rng.random() < SCENE_SHARE:
            kept = self.sample_crops(self.prior, rng)
        else:
            kept = self.sample_object_crops(with_objects(self.prior), rng)
        new = self.sample_object_crops(with_objects(scenes), rng)
        new_half = self.make_half_batch(new, rng, 0)
        kept_half = self.make_half_batch(kept, rng, self.spec.prompt_dropout)
        return new_half, kept_half

    def make_half_batch(
        self, crops: list[Crop], rng: np.random.Generator, dropout: float
    ) -> HalfBatch:
        """Return windows with noise for them.

        Args:
            dropout: the share of captions that are replaced by the null prompt.
        """
        x = crop_latents(crops)
        ids = self.tokenize(drop_captions(crops, rng.random(len(crops)) < dropout))
        t = rng.integers(0, self.noise_schedule.config.num_train_timesteps, len(crops))
        noise = rng.standard_normal(tuple(x.shape), np.float32)
        return x, ids, torch.from_numpy(t), torch.from_numpy(noise)

    def batch_size(self, h: int, w: int) -> int:
        share = min(1.0, self.unet.config["sample_size"] ** 2 / (h * w))
        return max(1, round(self.spec.batch_size * share))

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss of the new classes + prior_weight * the loss of the prior.

        This is equation 2 of arXiv 2208.12242.
        """
        new, kept = batch
        return self.half_loss(new) + self.spec.prior_weight * self.half_loss(kept)

    def half_loss(self, half: HalfBatch) -> Tensor:
        """Return the loss of windows."""
        x, ids, t, noise = (tensor.to(self.unet.device) for tensor in half)
        noisy = self.add_noise(x, noise, t)
        prediction = self.predict(noisy, t, self.text(ids).last_hidden_state)
        return self.loss(prediction, x, noise, t)

    def measure(self) -> dict[str, float]:
        """Return the losses of the new classes, in scenes not trained on, and of the prior."""
        pairs = islice(self.scenes.iterate_from(FIRST_MEASURED), MEASURED_SCENES)
        scenes = [self.encode(*pair) for pair in pairs]
        concept_losses = []
        prior_losses = []
        for k in range(MEASURED_BATCHES):
            rng = np.random.default_rng(seed_sequence(0, k, Stream.HELD_OUT))
            new, kept = self.make_batch(scenes, rng)
            concept_losses.append(float(self.half_loss(new)))
            prior_losses.append(float(self.half_loss(kept)))
        return {
            "concept_loss": round(float(np.mean(concept_losses)), 5),
            "prior_loss": round(float(np.mean(prior_losses)), 5),
        }

    def render_sheet(self) -> Image.Image:
        """Return one image with a row for each class: new, earlier, then plain categories."""
        names = [concept.name for concept in self.spec.concepts]
        names += [prior.name for prior in reversed(self.prior_classes) if prior.name]
        # a window and a quarter, rounded up to four latent cells
        cell = -(-5 * self.unet.config["sample_size"] // 16) * 4 * self.factor
        box = np.array([0.12, 0.2, 0.88, 0.8]) * cell
        boxes = []
        categories = []
        for row, name in enumerate(names):
            for column in range(SHEET_COLUMNS):
                boxes.append(box + cell * np.array([column, row, column, row]))
                categories.append(name)
        layout = Layout(
            SHEET_COLUMNS * cell,
            len(names) * cell,
            np.array(boxes, np.float32),
            tuple(categories),
        )
        pipeline = MixturePipeline(
            self.vae[0].to(self.unet.device),
            self.text,
            self.tokenizer,
            self.unet,
            deepcopy(self.solver),
        )
        pipeline.set_progress_bar_config(disable=True)
        sheet: Any = pipeline(
            [layout],
            GRASS if self.concepts.painter.cutouts else "",
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=self.spec.prior_steps,
            guidance_scale=self.spec.prior_guidance,
        )
        return sheet[0]

    def export(self, folder: Path) -> None:
        """Write a checkpoint with all its classes.

        A LoRA is merged into it, and written to its folder `lora` too.
        """
        unet = merge_lora(self.unet, folder / "lora")
        text = deepcopy(self.text).merge_and_unload()
        save_checkpoint(
            folder, self.spec.name, self.vae[0], text, self.tokenizer, unet, self.solver
        )
        entries = []
        for concept in (*self.earlier, *self.spec.concepts):
            entries.append({"identifier": concept.identifier, "category": concept.category})
        write_text(folder / CONCEPTS, json.dumps(entries, indent=1) + "\n")


def with_objects(scenes: Sequence[EncodedScene]) -> list[EncodedScene]:
    """Return the scenes with windows of objects."""
    return [scene for scene in scenes if scene.object_windows]


def add_identifiers(
    tokenizer: CLIPTokenizer, text: CLIPTextModel, concepts: Sequence[Concept]
) -> list[int]:
    """Make each identifier one word of the tokenizer, and return their token ids.

    The embedding of an identifier starts as the mean of its category's embeddings.
    """
    identifiers = [concept.identifier for concept in concepts]
    categories = [concept.category for concept in concepts]
    category_ids = tokenizer(categories, add_special_tokens=False).input_ids
    tokenizer.add_tokens(identifiers)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if text.config.eos_token_id == 2:
        # Old checkpoints pool at the token with the highest id, which is an identifier now.
        text.config.eos_token_id = tokenizer.eos_token_id
    ids: list[int] = tokenizer.convert_tokens_to_ids(identifiers)
    embedding = text.get_input_embeddings().weight.data
    for new, old in zip(ids, category_ids, strict=True):
        embedding[new] = embedding[old].mean(0)
    return ids


def add_adapter(text: CLIPTextModel, words: list[int], spec: Spec) -> CLIPTextModel:
    """Return the text encoder with trainable embeddings of these words.

    What else of it is trained depends on `train_text_encoder` and `lora`.
    """
    if spec.train_text_encoder and spec.lora is not None:
        lora = LoraConfig(
            r=spec.lora.rank,
            lora_alpha=spec.lora.rank,
            target_modules=TEXT_LORA,
            trainable_token_indices={"token_embedding": words},
        )
        return get_peft_model(text, lora)
    tokens = TrainableTokensConfig(token_indices=words, target_modules=["token_embedding"])
    adapted = get_peft_model(text, tokens)
    if spec.train_text_encoder:
        for name, weight in adapted.named_parameters():
            if "token_embedding" not in name:
                weight.requires_grad_(True)
    return adapted
