"""What every job needs while it runs: the Ray session, stage artifacts, progress, early checks, errors, HTML pages."""
