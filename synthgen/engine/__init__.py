"""From a job to a dataset: the driver, the workers that generate shards, import, merge, repair."""
