"""Foreign checkpoints as ours, without torch and TensorFlow."""
