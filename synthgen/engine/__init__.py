"""From a job to a dataset: the plan, the workers that make shards, and the driver that commits them."""
