"""Metrics of arrays of samples: distances, recall, and a feature network."""
