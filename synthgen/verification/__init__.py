"""Verification of images: the interface (`base`), repairs, and one folder for each verifier."""
