"""Pipelines: the interface (`base`), what diffusion methods share (`diffusion`), and one file or folder a method."""
