"""The mathematics: pure functions of arrays, and the denoiser interface around networks."""
