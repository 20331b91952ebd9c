"""Training: the interface (`base`), the loop, and one folder a task."""
