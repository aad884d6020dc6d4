"""Files to arrays and back: checkpoints, checksums, safetensors, foreign pickles."""
