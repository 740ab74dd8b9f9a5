"""A field of the service's requests: which levels the sampler visits."""

from __future__ import annotations

from pathlib import Path

from tests.workflows.growth.edits import below, instead

NAME = "field of requests"
MOST_FILES = 3
EDITS = (
    instead(
        "workflows/serve/request/schema.py",
        "import DEFAULT_SAMPLER, ETA_READERS, SamplerName\n",
        "import DEFAULT_SAMPLER, ETA_READERS, SamplerName, SpacingName\n",
    ),
    below(
        "workflows/serve/request/schema.py",
        """    sampler: SamplerName = Field(DEFAULT_SAMPLER, description="How to step.")
""",
        """    spacing: SpacingName | None = Field(None, description="Which levels are visited; default: the model's.")
""",
    ),
    below(
        "workflows/serve/request/schema.py",
        """    size: str
    sampler: SamplerName
""",
        """    spacing: SpacingName | None = None
""",
    ),
    below(
        "workflows/serve/request/resolve.py",
        """        sampler=request.sampler,
""",
        """        spacing=request.spacing,
""",
    ),
    instead(
        "workflows/serve/replica/rows.py",
        "settings.num_inference_steps, settings.eta or 0.0)\n",
        "settings.num_inference_steps, settings.eta or 0.0, settings.spacing)\n",
    ),
)


def check(package: Path, _folder: Path) -> None:
    """The field is in the schema, is resolved, changes the picture, and comes back with it."""
    import numpy as np

    from tests.workflows.growth.interfaces import PROMPT, Service

    service = Service(package)
    (choices, _null) = service.field("spacing")["anyOf"]
    assert "leading" in choices["enum"]
    plain, settings = service.draw(prompt=PROMPT, seed=7)
    assert settings.get("spacing") is None
    changed, settings = service.draw(prompt=PROMPT, seed=7, spacing="leading")
    assert settings["spacing"] == "leading"
    assert not np.array_equal(plain, changed)
    assert np.array_equal(service.draw(prompt=PROMPT, seed=7, spacing="trailing")[0], plain)
    refused = service.post(prompt=PROMPT, spacing="wide")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "spacing")
    service.close()
