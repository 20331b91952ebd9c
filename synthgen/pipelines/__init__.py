"""Methods of generation.

`base` is the interface, `diffusion` is what the diffusion methods share, and every other file or
folder is one method.
"""
