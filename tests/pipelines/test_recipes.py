"""The recipes for public checkpoints generate images with small checkpoints of the same form."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from synthgen.config import load_job
from synthgen.engine.worker import sample_scene
from synthgen.pipelines.base import Numerics
from synthgen.randomness import Stream, seed_sequence
from synthgen.yamlfile import parse_yaml
from tests.pipelines.diffusion.test_checkpoint import WEIGHTS, tiny_sdxl, to_variant, widen

METHODS = ("mixture", "regional-attention", "inpaint")
FAMILIES = ("sd15", "sd21", "sdxl", "turbo", "sd15-lcm", "sdxl-lcm")
RECIPES = [f"{method}-{family}" for method in METHODS for family in FAMILIES]
RECIPES.append("inpaint-sd15-inpainting")
FOLDER = Path(__file__).parents[2] / "pipelines"
FEW_STEPS = ("turbo", "lcm")
SCHEDULERS: dict[str, dict[str, Any]] = {
    "sd15": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1},
    "sd21": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
    "sdxl": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    "turbo": {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"},
}
"""Settings of the schedulers of the public checkpoints."""


def set_scheduler(folder: Path, family: str) -> None:
    """Give a checkpoint the scheduler of a family."""
    settings = SCHEDULERS[family]
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    entries["scheduler"] = ["diffusers", settings["_class_name"]]
    index.write_text(json.dumps(entries))


def make_model(family: str, checkpoint: Path, folder: Path) -> Path:
    """Save a small random checkpoint in the form of a public one."""
    base = family.partition("-")[0]
    if base in ("sdxl", "turbo"):
        tiny_sdxl(checkpoint, folder)
        files = (*WEIGHTS, "text_encoder_2/model.safetensors")
        to_variant("fp16", *files)(folder)
    else:
        shutil.copytree(checkpoint, folder)
    set_scheduler(folder, base)
    if family.endswith("inpainting"):
        widen(7, "StableDiffusionInpaintPipeline")(folder)
    return folder


def make_lora(folder: Path) -> Path:
    """Save a LoRA in the format of LCM's."""
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    file = folder / "lora.safetensors"
    state = {
        f"{layer}.lora_down.weight": torch.full((2, 16), 0.1),
        f"{layer}.lora_up.weight": torch.full((16, 2), 0.1),
        f"{layer}.alpha": torch.tensor(2.0),
    }
    save_file(state, file)
    return file


def test_every_recipe_for_a_public_checkpoint_is_tested_here() -> None:
    written = set()
    for method in METHODS:
        written |= {path.stem for path in FOLDER.glob(f"{method}-*.yaml")}
    assert written - {f"{method}-tiny" for method in METHODS} == set(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_generates_with_a_checkpoint_of_its_form(
    recipe: str, checkpoint: Path, tmp_path: Path
) -> None:
    method = next(name for name in METHODS if recipe.startswith(name))
    family = recipe.removeprefix(f"{method}-")
    model = make_model(family, checkpoint, tmp_path / "model")
    overrides = [f"pipeline={recipe}", f"pipeline.model={model}"]
    if family.endswith("lcm"):
        overrides.append(f"pipeline.lora={make_lora(tmp_path)}")
    small = ["layout.canvas=[32, 32]", "layout.objects={dog: 2}", "layout.size=[8, 12]"]
    job = load_job("100dogs", [*overrides, *small, "pipeline.dtype=float32"])
    painter = job.pipeline.load(job.scene, Numerics(dtype="float32"))
    painting = painter([sample_scene(job, 0)], [seed_sequence(job.seed, 0, Stream.NOISE)])[0]
    assert painting.image.shape == (32, 32, 3)
    assert np.std(painting.image) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_recipes_of_one_checkpoint_agree(family: str) -> None:
    recipes = {}
    for method in METHODS:
        path = FOLDER / f"{method}-{family}.yaml"
        recipes[method] = parse_yaml(path.read_text(), str(path)).data
    for key in ("model", "weights", "lora", "scheduler", "guidance_scale"):
        assert len({str(recipe.get(key)) for recipe in recipes.values()}) == 1, key
    for recipe in recipes.values():
        assert "window" not in recipe  # the size of the training is read from the checkpoint
        takes_few_steps = family.endswith(FEW_STEPS)
        assert (recipe["guidance_scale"] == 1) == takes_few_steps
        assert (recipe["steps"] <= 8) == takes_few_steps
