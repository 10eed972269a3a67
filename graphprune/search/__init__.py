"""What methods share: gates, schedules, losses, the loop, greedy pruning, checkpoints."""
