"""A sweep measures one model at many settings: `run` measures, `schedules` trains a job per schedule, `plots` draws."""
