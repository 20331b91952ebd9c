"""Measurements of a finished dataset, with detectors, text-image models and real images."""
