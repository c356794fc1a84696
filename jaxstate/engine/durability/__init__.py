"""What outlives the process: checkpoints, recovery, sessions in files."""
