"""Scenes: what is to be seen in an image beside its layout."""
