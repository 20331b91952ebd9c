"""Layouts: the type, the interface of samplers, and one file for each sampler."""
