"""Training of GLIGEN's gated layers on windows of scenes, as the grounded pipeline cuts them; the rest is frozen."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from diffusers.models.attention_processor import Attention
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from synthgen.diffusion.grounding import HELD, held
from synthgen.diffusion.models import find_model, unet_multiple
from synthgen.layouts.scatter import Spec as ScatterSpec
from synthgen.pipelines.grounded.pipeline import GroundedPipeline
from synthgen.scene import SceneSpec, caption
from synthgen.train.tasks.grounded import Spec
from synthgen.train.windows import EncodedScene, WindowTrainee

SHEET_SCENES = SceneSpec(object=("a brown {category}", "a white {category}", "a black {category}"), background="a field of grass")

GATE = 0.3  # of layers that were never trained: shut ones would have to open before the rest can learn
LOOK = 0.1  # weight of where the layers look, beside what they paint

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class BoxAttention:
    """An attention processor of gated layers that keeps, where gradients are wanted, how much each cell looks at each box.

    Args:
        most: boxes that the layers are told of: the last so many of the states that they see.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen: list[Tensor] = []

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: Any) -> Tensor:
        states = (attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states))
        q, k, v = (attn.head_to_batch_dim(s) for s in states)
        probs = attn.get_attention_scores(q, k, None)
        if torch.is_grad_enabled():
            heads = probs[:, : -self.most, -self.most :]
            self.seen.append(heads.unflatten(0, (len(hidden_states), -1)).mean(1))
        out: Tensor = attn.to_out[0](attn.batch_to_head_dim(probs @ v))
        return out

    def loss(self, boxes: Tensor, mask: Tensor, h: int, w: int) -> Tensor:
        """How far cells are from looking at the boxes that they lie in, and those outside from looking at none.

        Diffusion alone says this too, but so faintly that small data and few steps do not suffice. Cross-entropy of each cell's
        look with "at a box that holds the cell's centre", or with "at no box"; the mean over cells and layers.

        Args:
            boxes: (B, n, 4) xyxy as shares of the window.
            mask: (B, n), 1 where there is a box.
            h, w: of the window, in latent cells.
        """
        losses = []
        for p in self.seen:
            rows = round((p.shape[1] * h / w) ** 0.5)
            inside = contains(boxes, rows, p.shape[1] // rows) * mask[:, None]
            right = (p * inside).sum(2) + (1 - inside.amax(2)) * (1 - (p * mask[:, None]).sum(2))
            losses.append(-right.clamp(min=1e-4).log().mean())
        self.seen.clear()
        return torch.stack(losses).mean()


def contains(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Whether the centres of a grid's cells, row by row, are inside boxes (B, n, 4) given as shares of it: (B, cells, n)."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    at = torch.stack([x.flatten(), y.flatten()], 1).to(boxes)[None, :, None]
    return ((at >= boxes[:, None, :, :2]) & (at < boxes[:, None, :, 2:])).all(3).float()


class GroundedTrainee(WindowTrainee):
    """Gated layers; forward is the loss of one batch: latents, token ids, timesteps, noise, boxes, their mask and phrases."""

    def __init__(self, spec: Spec) -> None:
        folder = find_model(spec.init)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").float().eval()
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").float()
        super().__init__(spec, unet, text, CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"), vae)
        self.text.requires_grad_(False)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_("fuser" in name or "position_net" in name)
        self.attention = BoxAttention(spec.max_boxes)
        for layer in (m for m in self.unet.modules() if isinstance(m, GatedSelfAttentionDense)):
            layer.attn.set_processor(self.attention)
            for gate in (layer.alpha_attn, layer.alpha_dense):
                if not gate:
                    gate.data.fill_(GATE)
        self.pooled: dict[str, Tensor] = {}

    def batch(self, scenes: list[EncodedScene], rng: np.random.Generator) -> Batch:
        """Windows of one random size, anywhere, with the boxes that they hold at least half of."""
        filled = [s for s in scenes if len(s.scene.layout)] or scenes
        multiple = unet_multiple(self.unet.config)
        low, high = (side // self.factor // multiple for side in self.spec.windows)
        h, w = (int(v) * multiple for v in rng.integers(low, high + 1, 2))
        n, most = self.batch_size(h, w), self.spec.max_boxes
        crops, captions = [], []
        boxes, mask, phrases = np.zeros((n, most, 4), np.float32), np.zeros((n, most), np.float32), torch.zeros(n, most, self.dim)
        for i in range(n):
            scene = filled[int(rng.integers(len(filled)))]
            latents, own, told, words = self.window(scene, h, w, rng)
            crops.append(latents)
            captions.append(words)
            if rng.random() >= self.spec.boxes_dropout:
                boxes[i, : len(own)], mask[i, : len(own)] = own, 1
                phrases[i, : len(own)] = self.phrases(told)
        x = torch.stack(crops).float()
        t = torch.from_numpy((1000 * rng.random(n) ** 0.25).astype(np.int64))  # mostly noise: there boxes decide what is painted
        noise = torch.from_numpy(rng.standard_normal(tuple(x.shape), np.float32))
        return x, self.tokens(captions), t, noise, torch.from_numpy(boxes), torch.from_numpy(mask), phrases

    def window(self, scene: EncodedScene, h: int, w: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, list[str], str]:
        """Latents of a window of a scene, its boxes as shares of it, their phrases, and its caption."""
        rows, columns = scene.latents.shape[1:]
        y, x = int(rng.integers(max(0, rows - h) + 1)), int(rng.integers(max(0, columns - w) + 1))
        inside = np.flatnonzero(held(scene.boxes, (x, y, x + w, y + h)) >= HELD)
        inside = np.sort(rng.permutation(inside)[: self.spec.max_boxes])
        shares = ((scene.boxes[inside] - [x, y, x, y]) / [w, h, w, h]).clip(0, 1)
        layout, kind = scene.scene.layout.select(inside.tolist()), rng.random()
        words = caption(layout, scene.scene.background, self.spec.caption)
        if kind < self.spec.prompt_dropout:
            words = ""
        elif rng.random() < self.spec.names_dropout:
            words = scene.scene.background
        return scene.latents[:, y : y + h, x : x + w], shares, list(layout.phrases or ()), words

    @property
    def dim(self) -> int:
        return int(self.text.config.hidden_size)

    @torch.no_grad()
    def phrases(self, texts: list[str]) -> Tensor:
        """Pooled embeddings (n, D) of phrases; each is computed once."""
        for text in {t for t in texts if t not in self.pooled}:
            self.pooled[text] = self.text(self.tokens([text]).to(self.text.device)).pooler_output[0].cpu()
        return torch.stack([self.pooled[t] for t in texts]) if texts else torch.zeros(0, self.dim)

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared error of the velocity, and in training also of where the layers look.

        Not weighted: min-SNR weights leave out the noisy steps, in which boxes count.
        """
        x, ids, t, noise, boxes, mask, phrases = (part.to(self.unet.device) for part in batch)
        with torch.no_grad():
            words = self.text(ids).last_hidden_state
        grounding = {"gligen": {"boxes": boxes, "masks": mask, "positive_embeddings": phrases}}
        v = self.unet(self.noisy(x, noise, t), t, words, cross_attention_kwargs=grounding).sample
        loss = F.mse_loss(v.float(), self.noise_schedule.get_velocity(x, noise, t))
        return loss + LOOK * self.attention.loss(boxes, mask, *x.shape[2:]) if torch.is_grad_enabled() else loss

    def measure(self) -> dict[str, float]:
        """The loss of windows of held-out scenes, and the same if they are not told of their boxes."""
        batches = list(self.held_out())
        blind = [(*b[:5], torch.zeros_like(b[5]), b[6]) for b in batches]
        told, untold = (float(np.mean([float(self(b)) for b in of])) for of in (batches, blind))
        return {"heldout_loss": round(told, 5), "heldout_loss_without_boxes": round(untold, 5)}

    def sheet(self) -> Image.Image:
        """Four layouts painted by the pipeline, without and with their boxes drawn."""
        side = min(256, self.spec.windows[1])
        size = (0.3 * side, 0.4 * side)
        specs = [ScatterSpec(canvas=(side, side), objects={"dog": n}, size=size, gap=2) for n in (1, 2, 3, 4)]
        drawn = [SHEET_SCENES.draw(s.sample(np.random.default_rng(i)), np.random.default_rng(i)) for i, s in enumerate(specs)]
        parts = (self.vae[0].to(self.unet.device), self.text, self.tokenizer, self.unet, self.solver())
        pipeline = GroundedPipeline(*parts)
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 12, "guidance_scale": 2.5, "caption": self.spec.caption, "window": side}
        images = pipeline(
            [s.layout for s in drawn],
            background=[s.background for s in drawn],
            generator=[torch.Generator().manual_seed(i) for i in range(len(drawn))],
            max_boxes=self.spec.max_boxes,
            stages=(1.0, 0.0),
            **options,
        )
        sheet = Image.new("RGB", (side * len(drawn), 2 * side))
        for i, (image, scene) in enumerate(zip(images, drawn, strict=True)):
            sheet.paste(image, (i * side, 0))
            draw = ImageDraw.Draw(image)
            for box in scene.layout.boxes.tolist():
                draw.rectangle(box, outline="red")
            sheet.paste(image, (i * side, side))
        return sheet
