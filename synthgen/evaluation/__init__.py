"""How good is a finished dataset? Its labels held against detectors and text-image models."""
