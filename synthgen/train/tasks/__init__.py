"""The tasks of `synthgen train`: one recipe a module."""
