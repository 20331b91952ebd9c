"""What several tests use: small jobs, finished datasets, and tiny random checkpoints."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgen.config import Job, load_job
from synthgen.engine.driver import run
from tests.s3 import S3, running

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # there are as many workers as cores

SMALL_JOB: dict[str, Any] = {
    "version": 1,
    "name": "small",
    "images": 6,
    "seed": 3,
    "layout": {
        "sampler": "scatter",
        "canvas": [128, 128],
        "objects": {"dog": 4},
        "size": [24, 40],
        "gap": 4,
    },
    "scene": {
        "object": ["a brown {category}", "a white {category}"],
        "background": "a field of grass",
    },
    "pipeline": {"method": "paste"},
    "output": {"shard_size": 2},
    "workers": 0,
    "batch_size": 2,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that none of them is left alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """The small job as a file (JSON is YAML), its output folder beside it."""
    job = {**SMALL_JOB, "output": {**SMALL_JOB["output"], "path": str(tmp_path / "out")}}
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(job))
    return path


@pytest.fixture
def make_job(job_file: Path) -> Callable[..., Job]:
    """The small job with overrides."""
    return lambda *overrides: load_job(str(job_file), overrides)


@pytest.fixture
def dataset(make_job: Callable[..., Job]) -> Path:
    """A finished small dataset."""
    job = make_job()
    run(job)
    return Path(job.output.path)


def shard_bytes(out: Path) -> dict[str, bytes]:
    """Name and bytes of every tar and table of a dataset."""
    return {
        p.name: p.read_bytes()
        for p in sorted((out / "shards").iterdir())
        if p.suffix in (".tar", ".parquet")
    }


def tiny_checkpoint(folder: Path, channels: int = 3, halvings: int = 1) -> Path:
    """A random Stable Diffusion checkpoint: `channels` latent channels, a factor of 2 to the number of `halvings`."""
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from synthgen.training.text_to_image.trainee import new_tokenizer

    torch.manual_seed(0)
    tokenizer = new_tokenizer(["a brown white black dog cat, a field of grass gravel sand"])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    blocks = halvings + 1
    vae = AutoencoderKL(
        latent_channels=channels, block_out_channels=(8,) * blocks, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, sample_size=64,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """An S3-protocol server of this test process."""
    with running() as s3:
        yield s3


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    """The same, failing no requests."""
    s3_server.fail()
    yield s3_server
    s3_server.fail()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with factor 2 and 3 latent channels."""
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
