"""Evaluation of finished networks: comparisons, protocols, reports, pictures."""
