"""What a UNet reads of prompts: the text encoders of Stable Diffusion and SDXL checkpoints."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from synthgen.pipelines.diffusion.mixture import Conditions, select

log = logging.getLogger(__name__)

KEPT = 8  # sets of prompts whose embeddings are kept: the batches of a job mostly share theirs


class TextEncoding:
    """The part of a pipeline that turns prompts into conditions of its UNet."""

    tokenizer: Any
    text_encoder: Any
    tokenizer_2: Any
    text_encoder_2: Any
    unet: Any
    factor: int
    config: Any
    _execution_device: torch.device
    embedded: dict[tuple[str | None, ...], Conditions] | None = (
        None  # of sets of prompts; None: not kept
    )
    empty_is_none: bool = False
    """Whether an empty prompt counts as None: in jobs, whose images stay as they were, and nowhere else."""

    def encode_prompts(self, prompts: Sequence[str | None]) -> Tensor:
        """Return text embeddings (P, T, D) of prompts; what is beyond the encoder's length is cut off, with a warning.

        None is no prompt: SDXL's embedding of it is zero, as diffusers has it; elsewhere it is that of an empty prompt.
        """
        length = self.tokenizer.model_max_length
        for prompt in filter(None, prompts):
            found = (
                len(self.tokenizer(prompt).input_ids) if len(prompt) > length else 0
            )  # a token is a letter at least
            if found > length:
                log.warning(
                    "prompt %.40r…: %d tokens, of which the text encoder reads the first %d",
                    prompt,
                    found,
                    length,
                )
        if self.text_encoder_2 is None:
            return self.text_encoder(self.tokens(self.tokenizer, prompts)).last_hidden_state
        both = [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]
        hidden = [
            e(self.tokens(t, prompts), output_hidden_states=True).hidden_states[-2] for t, e in both
        ]
        return torch.cat(hidden, -1) * self.shown(prompts)[:, None, None]

    def text_conditions(self, prompts: Sequence[str | None], guidance_scale: float) -> Conditions:
        """What the UNet reads of prompts, with a row for each.

        For SDXL also the second encoder's pooled embedding, and size conditioning: every window counts as a whole picture of
        the size that the checkpoint was trained at. For a distilled UNet that takes it (LCM), the guidance scale.
        """
        if self.embedded is None:
            return self.conditions_of(prompts, guidance_scale)
        distinct = tuple(
            sorted(set(prompts), key=lambda p: (p is not None, p or ""))
        )  # as a whole: an embedding's last bits depend on what it is computed beside
        key = (*distinct, str(guidance_scale))
        if key not in self.embedded:
            if len(self.embedded) == KEPT:
                self.embedded.pop(next(iter(self.embedded)))
            self.embedded[key] = self.conditions_of(distinct, guidance_scale)
        rows = {prompt: row for row, prompt in enumerate(distinct)}
        return select(
            self.embedded[key],
            torch.tensor([rows[prompt] for prompt in prompts], device=self._execution_device),
        )

    def conditions_of(self, prompts: Sequence[str | None], guidance_scale: float) -> Conditions:
        """As `text_conditions`, computed."""
        found: dict[str, Tensor] = {"encoder_hidden_states": self.encode_prompts(prompts)}
        like = found["encoder_hidden_states"]
        if self.text_encoder_2 is not None:
            pooled = self.text_encoder_2(self.tokens(self.tokenizer_2, prompts))[0]
            side = self.unet.config.sample_size * self.factor
            found["added_cond_kwargs.text_embeds"] = pooled * self.shown(prompts)[:, None]
            found["added_cond_kwargs.time_ids"] = like.new_tensor(
                [side, side, 0, 0, side, side]
            ).repeat(len(prompts), 1)
        if self.unet.config.time_cond_proj_dim is not None:
            scale = like.new_full((len(prompts),), (guidance_scale - 1) * 1000)
            embedded = get_timestep_embedding(
                scale, self.unet.config.time_cond_proj_dim, flip_sin_to_cos=False
            )
            found["timestep_cond"] = embedded.to(like.dtype)
        return found

    def tokens(self, tokenizer: Any, prompts: Sequence[str | None]) -> Tensor:
        """Return token ids (P, T) of prompts, on the pipeline's device."""
        texts = [prompt or "" for prompt in prompts]
        ids: Tensor = tokenizer(
            texts, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        return ids.to(self._execution_device)

    def shown(self, prompts: Sequence[str | None]) -> Tensor:
        """Return 0 for prompts whose embedding is to be zero (none given, for SDXL), else 1: (P,)."""
        none = [prompt is None or (self.empty_is_none and not prompt) for prompt in prompts]
        zero = self.config.force_zeros_for_empty_prompt
        ones = [float(not (zero and absent)) for absent in none]
        return torch.tensor(ones, device=self._execution_device, dtype=self.unet.dtype)
