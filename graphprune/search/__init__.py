"""What methods share: gates, schedules, losses, the optimisation loop, descent, checkpoints."""
