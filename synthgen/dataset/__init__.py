"""The dataset on disk: shards, markers, annotations, manifest, card, and the check of all of them (no torch)."""
