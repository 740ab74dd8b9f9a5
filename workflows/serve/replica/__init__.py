"""A replica denoises the rows of many requests together: `replica` is the deployment, `engine_thread` its loop."""
