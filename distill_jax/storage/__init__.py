"""Files to arrays and back: checkpoints, checksums, foreign pickles."""
