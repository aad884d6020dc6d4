"""Numbers from arrays: nothing here knows of training."""
