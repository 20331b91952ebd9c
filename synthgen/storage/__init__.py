"""Storage: bytes under names, in a folder or an object store."""
