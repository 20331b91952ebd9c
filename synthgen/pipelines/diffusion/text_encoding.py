"""What a UNet reads of prompts: the text encoders of Stable Diffusion and SDXL checkpoints."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor

from synthgen.pipelines.diffusion.mixture import Conditions, select

log = logging.getLogger(__name__)

CACHED_SETS = 8  # sets of prompts whose embeddings are cached; most batches of a job share theirs


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
    embedded: dict[tuple[str | None, ...], Conditions] | None = None
    """The cached conditions of sets of prompts; None: they are not cached."""
    empty_is_none: bool = False
    """Whether an empty prompt counts as None; only jobs set it, to keep their images unchanged."""

    def encode_prompts(self, prompts: Sequence[str | None]) -> Tensor:
        """Return text embeddings (P, T, D) of prompts.

        Prompts longer than the encoder reads are truncated, with a warning. None means no prompt:
        for SDXL its embedding is zero, as in diffusers; for other checkpoints it is that of an
        empty prompt.
        """
        for prompt in prompts:
            if prompt:
                self._warn_about_length(prompt)
        if self.text_encoder_2 is None:
            return self.text_encoder(self.tokens(self.tokenizer, prompts)).last_hidden_state
        first = self.text_encoder(
            self.tokens(self.tokenizer, prompts), output_hidden_states=True
        ).hidden_states[-2]
        second = self.text_encoder_2(
            self.tokens(self.tokenizer_2, prompts), output_hidden_states=True
        ).hidden_states[-2]
        return torch.cat([first, second], -1) * self._scale_embeddings(prompts)[:, None, None]

    def _warn_about_length(self, prompt: str) -> None:
        """Warn of a prompt that has more tokens than the text encoder reads."""
        length = self.tokenizer.model_max_length
        if len(prompt) <= length:
            return  # a token has at least one character
        count = len(self.tokenizer(prompt).input_ids)
        if count > length:
            log.warning(
                "prompt %.40r…: %d tokens, but the text encoder reads only the first %d",
                prompt,
                count,
                length,
            )

    def text_conditions(self, prompts: Sequence[str | None], guidance_scale: float) -> Conditions:
        """Return what the UNet reads of prompts, with one row for each.

        For SDXL this includes the pooled embedding of the second encoder and the size conditioning:
        every window counts as a whole image of the size that the checkpoint was trained at. For a
        distilled UNet that reads it (LCM), it includes the guidance scale.
        """
        if self.embedded is None:
            return self.conditions_of(prompts, guidance_scale)
        # The whole set is encoded at once, in a fixed order: the last bits of an embedding depend
        # on what else is in its batch.
        distinct = tuple(sorted(set(prompts), key=_sort_key))
        key = (*distinct, str(guidance_scale))
        if key not in self.embedded:
            if len(self.embedded) == CACHED_SETS:
                oldest = next(iter(self.embedded))
                del self.embedded[oldest]
            self.embedded[key] = self.conditions_of(distinct, guidance_scale)
        row_of_prompt = {prompt: row for row, prompt in enumerate(distinct)}
        rows = [row_of_prompt[prompt] for prompt in prompts]
        return select(self.embedded[key], torch.tensor(rows, device=self._execution_device))

    def conditions_of(self, prompts: Sequence[str | None], guidance_scale: float) -> Conditions:
        """Compute what `text_conditions` returns, without the cache."""
        embeddings = self.encode_prompts(prompts)
        conditions: dict[str, Tensor] = {"encoder_hidden_states": embeddings}
        if self.text_encoder_2 is not None:
            pooled = self.text_encoder_2(self.tokens(self.tokenizer_2, prompts))[0]
            side = self.unet.config.sample_size * self.factor
            time_ids = embeddings.new_tensor([side, side, 0, 0, side, side])
            text_embeds = pooled * self._scale_embeddings(prompts)[:, None]
            conditions["added_cond_kwargs.text_embeds"] = text_embeds
            conditions["added_cond_kwargs.time_ids"] = time_ids.repeat(len(prompts), 1)
        dimension = self.unet.config.time_cond_proj_dim
        if dimension is not None:
            scales = embeddings.new_full((len(prompts),), (guidance_scale - 1) * 1000)
            embedded_scales = get_timestep_embedding(scales, dimension, flip_sin_to_cos=False)
            conditions["timestep_cond"] = embedded_scales.to(embeddings.dtype)
        return conditions

    def tokens(self, tokenizer: Any, prompts: Sequence[str | None]) -> Tensor:
        """Return token ids (P, T) of prompts, on the pipeline's device."""
        texts = [prompt or "" for prompt in prompts]
        encoded = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        ids: Tensor = encoded.input_ids
        return ids.to(self._execution_device)

    def _scale_embeddings(self, prompts: Sequence[str | None]) -> Tensor:
        """Return the factor (P,) of each embedding: 0 for no prompt if SDXL needs zeros, else 1."""
        needs_zeros = self.config.force_zeros_for_empty_prompt
        factors = []
        for prompt in prompts:
            is_none = prompt is None or (self.empty_is_none and not prompt)
            factors.append(0.0 if needs_zeros and is_none else 1.0)
        return torch.tensor(factors, device=self._execution_device, dtype=self.unet.dtype)


def _sort_key(prompt: str | None) -> tuple[bool, str]:
    """Return a key that sorts prompts alphabetically, with None first."""
    return prompt is not None, prompt or ""
