"""The service: `http` answers clients, `replica` runs the models, `engine` batches steps, `request` is what they share.

`app` binds the deployments together, `host` runs them on Ray Serve, `check` sends real requests.
"""
