"""Storage of files by name, in a folder or an object store, and the lock of an output."""
