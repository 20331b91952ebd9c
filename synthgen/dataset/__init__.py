"""The dataset on disk: shards, markers, annotations, manifest, card and checks, without torch."""
