"""What the diffusion methods share: checkpoints, windows, regions, denoising and decoding."""
