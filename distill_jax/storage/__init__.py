"""Storage of arrays in files: checkpoints, checksums, safetensors, foreign pickles."""
