"""The service: an HTTP front in OpenAI's shape, a text encoder, and samplers that batch step by step.

`schema` says what may be asked, `ingress` speaks HTTP, `sampler` runs one `StepEngine` per replica on its own
thread (`engine_thread`), `text` encodes prompts, `app` binds them together, `check` sends real requests.
"""
