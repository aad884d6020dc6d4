"""Metrics of arrays of samples: distances, recall, colours, and a feature network."""
