"""Settings: the same from a job's configuration and from a Serve config file."""

from __future__ import annotations

import pytest

from workflows.config.schema import RunConfig
from workflows.errors import InvalidConfig
from workflows.serve.app import build
from workflows.serve.replica.warming import buckets_of
from workflows.serve.settings import ServeArgs


def test_a_job_s_configuration_names_its_own_model() -> None:
    config = RunConfig.model_validate(
        {
            "name": "x",
            "data": {"source": "digits"},
            "register": {"model_name": "digits", "alias": "best"},
            "storage": {"root": "/nowhere"},
            "serve": {"max_rows": 4, "max_replicas": 3},
        }
    )
    args = ServeArgs.of(config)
    assert (args.model, args.tracking_uri) == ("digits@best", "sqlite:////nowhere/mlflow.db")
    assert (args.max_rows, args.max_replicas) == (4, 3)
    assert ServeArgs.of(config, "other/2").model == "other/2"


def test_all_faults_of_a_config_file_are_told() -> None:
    with pytest.raises(
        InvalidConfig, match=r"tracking_uri: missing; max_rows: .*found 0.*; rows: unknown key \(known: model, "
    ):
        build({"model": "digits@champion", "max_rows": 0, "rows": 3})


def test_the_application_builds_from_plain_values() -> None:
    args = {"model": "digits@champion", "tracking_uri": "sqlite:////shared/x.db", "min_replicas": 2, "max_replicas": 4}
    assert build(args).__class__.__name__ == "Application"


def test_a_relative_store_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"tracking_uri: .*relative path sqlite:///runs/mlflow.db"):
        build({"model": "digits@champion", "tracking_uri": "sqlite:///runs/mlflow.db"})


@pytest.mark.parametrize(
    ("max_rows", "buckets"), [(1, (1, 2)), (3, (1, 2, 4, 8)), (4, (1, 2, 4, 8)), (8, (1, 2, 4, 8, 16))]
)
def test_buckets_hold_every_row_and_its_negative(max_rows: int, buckets: tuple[int, ...]) -> None:
    assert buckets_of(max_rows) == buckets
