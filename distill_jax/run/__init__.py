"""Runs of a config: the plan, its validation and costs, and the training of all its stages."""
