"""Verification: the interface (`base`), repairs, and one folder a verifier."""
