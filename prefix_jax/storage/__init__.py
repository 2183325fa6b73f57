"""What runs leave behind: checkpoints, artifacts, logs."""
