"""What every job needs while it runs: the Ray session, stage artifacts, progress, checks before the start, errors."""
