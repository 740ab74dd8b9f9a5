"""One model at many settings: `run` measures, `schedules` trains a job for each noise schedule, `plots` draws."""
