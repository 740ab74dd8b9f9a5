"""The service: `http` answers clients, `replica` denoises in step batches, `request` holds what travels between.

`app` binds the deployments together, `host` puts them on Ray Serve, `check` sends real requests.
"""
