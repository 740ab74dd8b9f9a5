"""A stage: counts the words of the captions, as many as the configuration says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from tests.workflows.growth.edits import above, below, new_file

NAME = "stage"
MOST_FILES = 4
EDITS = (
    new_file(
        "workflows/data/words.py",
        '''"""The stage that counts the words of the captions."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from workflows.config.schema import RunConfig
from workflows.data.dataset import Dataset
from workflows.runtime.artifact import Artifact
from workflows.runtime.progress import Progress


def count_words(config: RunConfig, inputs: dict[str, Artifact], folder: Path, progress: Progress) -> dict[str, Any]:
    """Writes `words.json`, the words that occur most often with their counts.

    Args:
        config: the job; its `words` section is read.
        inputs: the artifact `data`.
        folder: where the file goes.
        progress: told about the file.

    Returns:
        `num_words`: how many different words there are.
    """
    split = Dataset.open(inputs["data"].folder).read("train")
    counts = Counter(word for wordings in split.captions for text in wordings for word in text.split())
    (folder / "words.json").write_text(json.dumps(dict(counts.most_common(config.words.most)), indent=2))
    progress.log(f"{len(counts)} different words")
    return {"num_words": len(counts)}
''',
    ),
    above(
        "workflows/config/schema.py",
        "class StorageConfig(Section):\n",
        '''class WordsConfig(Section):
    """The count of words."""

    most: PositiveInt = Field(20, description="Words that are listed.")


''',
    ),
    below(
        "workflows/config/schema.py",
        "    serve: ServeConfig = ServeConfig()\n",
        "    words: WordsConfig = WordsConfig()\n",
    ),
    above(
        "workflows/job/stages.py",
        "def _check_tracking(",
        """def _words() -> StageFunction:
    from workflows.data.words import count_words

    return count_words


""",
    ),
    above(
        "workflows/job/stages.py",
        """    Stage(
        name="clip",
""",
        """    Stage(
        name="words",
        help="Counts the words of the captions.",
        load=_words,
        sections=lambda config: config.words.keyed(),
        inputs=("data",),
    ),
""",
    ),
)


def check(_package: Path, folder: Path) -> None:
    """The stage is in the table, has a verb and settings, runs in a job, and is skipped the second time."""
    from tests.workflows.growth.interfaces import help_of, raverse
    from workflows.cli import command
    from workflows.config.load import config_keys, load_config
    from workflows.job.pipeline import plan_job, run_job
    from workflows.job.stages import STAGES
    from workflows.runtime.progress import Progress

    assert "words.most" in config_keys()
    items = [f"storage.root={folder}", "words.most=3"]
    rows = [stage for stage in STAGES if stage.name in ("data", "words")]

    def job(*more: str) -> list[bool]:
        config = load_config("digits", [*items, *more])
        result = run_job(config, Progress.silent(), plan_job(config, rows), lambda _: contextlib.nullcontext())
        assert result.outcomes[1].artifact.metrics["num_words"] > 10
        return [outcome.skipped for outcome in result.outcomes]

    assert job() == [False, False]
    assert job() == [True, True]
    assert job("words.most=4") == [True, False]
    files = sorted(folder.glob("artifacts/words/*/words.json"))
    assert sorted(len(json.loads(file.read_text())) for file in files) == [3, 4]

    command.ray_session = lambda _: contextlib.nullcontext()  # type: ignore[assignment]
    assert "Counts the words of the captions. Reads: data." in help_of()
    raverse("words", "--config", "digits", "--set", items[0], "--set", "words.most=5")
    assert len(list(folder.glob("artifacts/words/*/words.json"))) == 3
