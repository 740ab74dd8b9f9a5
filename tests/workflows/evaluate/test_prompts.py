"""What is asked: evenly, in rounds, in the data's own words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from workflows.config.load import load_config
from workflows.data.dataset import Dataset
from workflows.data.stage import build_data
from workflows.evaluate.measure import asked_for
from workflows.evaluate.prompts import ask
from workflows.runtime.progress import Progress


@pytest.fixture(scope="module", params=["digits", "shapes"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp(request.param)
    build_data(load_config(request.param, ["data.num_samples=2400"]), {}, folder, Progress.silent())
    return Dataset.open(folder)


def test_every_combination_once_per_round(dataset: Dataset) -> None:
    total = len(dataset.info.candidate_captions)
    prompts = ask(dataset, 2 * total + 3, seed=0)
    for start in (0, total):
        assert sorted(prompts.combinations[start : start + total].tolist()) == list(range(total))
    assert len(set(prompts.combinations[: total + 3].tolist())) == total


def test_a_prompt_says_what_is_judged(dataset: Dataset) -> None:
    prompts = ask(dataset, 50, seed=0)
    names = list(dataset.info.attributes)
    figures = {word: str(place) for place, word in enumerate(dataset.info.class_names)}
    for text, target, combination in zip(prompts.texts, prompts.targets, prompts.combinations, strict=True):
        values = dataset.info.values_of(int(combination))
        assert [dataset.info.attributes[name][index] for name, index in zip(names, target, strict=True)] == list(values)
        assert all(value in text or figures.get(value, "-") in text for value in values)


def test_wordings_come_from_the_data_and_differ(dataset: Dataset) -> None:
    known = {text for split in ("train", "held_out") for texts in dataset.read(split).captions for text in texts}
    prompts = ask(dataset, 100, seed=0)
    assert set(prompts.texts) <= known
    assert len(set(prompts.texts)) > len(set(prompts.combinations.tolist())) * 0.9


def test_unseen_combinations_are_marked(dataset: Dataset) -> None:
    prompts = ask(dataset, len(dataset.info.candidate_captions), seed=0)
    assert sorted(prompts.combinations[prompts.unseen].tolist()) == sorted(dataset.info.unseen_combinations)


def test_the_seed_decides_everything(dataset: Dataset) -> None:
    one, again, other = (ask(dataset, 40, seed) for seed in (0, 0, 1))
    assert (one.texts, one.seeds) == (again.texts, again.seeds)
    assert (one.texts, one.seeds) != (other.texts, other.seeds)
    assert len(set(one.seeds)) == 40


def test_fewer_rows_are_the_first_rows(dataset: Dataset) -> None:
    many, few = ask(dataset, 60, seed=0), ask(dataset, 20, seed=0)
    assert many.first(20).combinations.tolist() == few.combinations.tolist()
    assert len(few.first(100)) == 20


def test_comparable_rows_hold_each_combination_twice(dataset: Dataset) -> None:
    prompts = ask(dataset, 2 * len(dataset.info.candidate_captions), seed=0)
    for count in (6, 40):
        rows = prompts.rows(prompts.comparable(count))
        assert set(Counter(rows.combinations.tolist()).values()) == {2}
        assert abs(len(rows) - count) <= max(0, count - 2 * len(dataset.info.candidate_captions))
    rows = prompts.rows(prompts.comparable(6))
    assert len(set(rows.combinations[:3].tolist())) == 3, "the first rows should differ"


def test_few_combinations_are_all_compared() -> None:
    rows = np.arange(30) % 3
    prompts = _prompts(rows)
    kept = prompts.rows(prompts.comparable(12))
    assert Counter(kept.combinations.tolist()) == {0: 4, 1: 4, 2: 4}


def _prompts(combinations: np.ndarray):
    from workflows.evaluate.prompts import Prompts

    count = len(combinations)
    return Prompts(("a",) * count, combinations, combinations[:, None], tuple(range(count)), np.zeros(count, np.bool_))


def test_real_samples_come_in_the_mixture_that_is_asked_for(dataset: Dataset) -> None:
    total = len(dataset.info.candidate_captions)
    prompts = ask(dataset, 5 * total // 2, seed=0)
    asked = Counter(prompts.combinations.tolist())
    for name in ("train", "held_out"):
        everything = Counter(dataset.combinations(dataset.read(name)).tolist())
        found = Counter(dataset.combinations(asked_for(dataset, prompts, name)).tolist())
        per_prompt = np.median([everything[key] / times for key, times in asked.items() if everything[key]])
        for key, times in asked.items():
            assert found[key] == min(everything[key], round(times * per_prompt))


def test_held_out_samples_as_they_are_have_another_mixture(dataset: Dataset) -> None:
    prompts = ask(dataset, len(dataset.info.candidate_captions), seed=0)
    wanted = prompts.unseen.mean()
    every, like = (
        np.isin(dataset.combinations(split), dataset.info.unseen_combinations).mean()
        for split in (dataset.read("held_out"), asked_for(dataset, prompts))
    )
    assert abs(like - wanted) < 0.06
    if wanted > 0:
        assert every > 3 * wanted


def test_samples_of_what_nobody_asks_for_are_left_out(dataset: Dataset) -> None:
    prompts = ask(dataset, 5, seed=0)
    found = dataset.combinations(asked_for(dataset, prompts))
    assert set(found.tolist()) == set(prompts.combinations.tolist())
