"""The mathematics: pure functions of arrays, and the seam that networks are seen through."""
