"""Fixtures that several tests use: small jobs, finished datasets and tiny random checkpoints."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthgen.config import Job, load_job
from synthgen.engine.generation import run
from tests.s3 import S3, run_server

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core runs a worker already

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
    """Run files with slow tests first, so that none of them runs alone at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """Return the file of the small job (JSON is YAML), with its output folder beside it."""
    job = {**SMALL_JOB, "output": {**SMALL_JOB["output"], "path": str(tmp_path / "out")}}
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(job))
    return path


@pytest.fixture
def make_job(job_file: Path) -> Callable[..., Job]:
    """Return a function that loads the small job with overrides."""
    return lambda *overrides: load_job(str(job_file), overrides)


@pytest.fixture
def dataset(make_job: Callable[..., Job]) -> Path:
    """Return the folder of a finished small dataset."""
    job = make_job()
    run(job)
    return Path(job.output.path)


def read_shard_bytes(out: Path) -> dict[str, bytes]:
    """Return the bytes of every tar and table of a dataset by file name."""
    contents = {}
    for path in sorted((out / "shards").iterdir()):
        if path.suffix in (".tar", ".parquet"):
            contents[path.name] = path.read_bytes()
    return contents


def save_tiny_checkpoint(folder: Path, channels: int = 3, halvings: int = 1) -> Path:
    """Save a random Stable Diffusion checkpoint, and return its folder.

    Args:
        channels: the number of latent channels.
        halvings: how many times the VAE halves the sides of an image.
    """
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel

    from synthgen.training.text_to_image.trainee import make_tokenizer

    torch.manual_seed(0)
    tokenizer = make_tokenizer(["a brown white black dog cat, a field of grass gravel sand"])
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    blocks = halvings + 1
    vae = AutoencoderKL(
        latent_channels=channels,
        block_out_channels=(8,) * blocks,
        norm_num_groups=4,
        mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        sample_size=64,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """Run a server of the S3 protocol for this test process."""
    with run_server() as s3:
        yield s3


@pytest.fixture
def s3(s3_server: S3) -> Iterator[S3]:
    """Return the S3 server without faults."""
    s3_server.fail()
    yield s3_server
    s3_server.fail()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random checkpoint with factor 2 and 3 latent channels."""
    return save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
