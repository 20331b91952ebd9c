"""The verifiers of a job's `verify`: one recipe a module."""
