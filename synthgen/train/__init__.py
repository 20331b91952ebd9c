"""Training of checkpoints from pasted scenes."""
