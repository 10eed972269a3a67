"""Mask optimisation: gates, schedules, losses, data, checkpoints, and the loop around them."""
