"""What the diffusion pipelines share: checkpoints, windows, regions, decoding."""
