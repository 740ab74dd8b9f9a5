"""MLflow tracking: `store` finds and checks the store, `run` logs one run."""
