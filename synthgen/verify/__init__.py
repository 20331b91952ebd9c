"""Looking at pictures again: what is really in the boxes."""
