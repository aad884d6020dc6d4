"""Finished networks are measured and drawn: comparisons, protocols, reports, pictures."""
