"""Scenes: the prompts for a layout, weather and light, and the effects of a camera."""
