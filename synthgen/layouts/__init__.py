"""Layouts: the type, the interface of samplers, and one file a sampler."""
