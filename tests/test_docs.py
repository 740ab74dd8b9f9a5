"""What the documents say is true: commands parse, code runs, files exist, versions agree."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from workflows.cli import app as cli
from workflows.config.load import load_config
from workflows.serve.settings import ServeArgs

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "workflows/README.md",
    "deploy/README.md",
    "deploy/SCALING.md",
    ".github/CONTRIBUTING.md",
    ".github/SECURITY.md",
)


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Every line of the shell blocks, continued lines joined, as words."""
    text = "\n".join(blocks(page, "bash")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.strip()]


ALL_COMMANDS = [pytest.param(words, id=" ".join(words)[:60]) for page in PAGES for words in commands(page)]


def parse_raverse(words: list[str]) -> dict[str, Any]:
    """Parses a `raverse` command line as the program would, without running it."""
    group: Any = typer.main.get_command(cli.app)
    context = group.make_context("raverse", list(words))
    name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    return dict(command.make_context(name, rest, parent=context).params)


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_commands_of_the_documents_are_real(words: list[str]) -> None:
    program, *rest = [word for position, word in enumerate(words) if position or not re.match(r"[A-Z_]+=", word)]
    if program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif Path(program).name == "raverse":
        check_configured(parse_raverse(rest))
    elif program == "ray":
        assert rest[:2] == ["job", "submit"]
        inner = rest[rest.index("--") + 1 :]
        assert inner[:3] == ["python", "-m", "workflows.cli"]
        check_configured(parse_raverse(inner[3:]))
        assert (ROOT / rest[rest.index("--runtime-env") + 1]).is_file()
    elif program == ".venv/bin/python":
        assert rest[:2] == ["-m", "pytest"]
        assert (ROOT / rest[-1]).is_dir()
    elif Path(program).name == "pre-commit":
        assert rest == ["install"]
    elif program == "serve":
        assert rest[0] == "deploy"
        assert (ROOT / rest[1]).is_file()
    elif program == "docker":
        file = (ROOT / rest[rest.index("-f") + 1]).read_text()
        assert f" AS {rest[rest.index('--target') + 1]}\n" in file
    elif program == "kubectl":
        written = [words[words.index("--out") + 1] for page in PAGES for words in commands(page) if "--out" in words]
        assert rest[:2] == ["apply", "-k"]
        assert rest[2] in written
    else:
        assert program == "curl", f"no test for {program}"


def check_configured(options: dict[str, Any]) -> None:
    if not options.get("config"):
        return  # a command below a group, such as `data check`
    load_config(options["config"], options["overrides"])


def test_python_of_the_readme_runs() -> None:
    found = blocks("README.md", "python")
    assert found
    names: dict[str, Any] = {}
    for block in found:
        exec(compile(block, "README.md", "exec"), names)
    assert tuple(names["images"].shape) == (3, 3, 32, 32)


def tree_paths() -> list[str]:
    """Paths of the annotated tree, by their indentation."""
    (tree,) = blocks("README.md", "text")
    paths, folder = [], ""
    for line in tree.splitlines():
        left = re.split(r"\s{2,}(?=[a-zA-Z0-9-]+[ :,])", line.lstrip("├└─ "), maxsplit=1)[0]
        names = [word for word in left.split() if word.endswith(("/", ".py"))]
        if not line.startswith(("├", "└")):
            folder = names[0]
            paths.append(folder)
        else:
            paths += [folder + name for name in names]
    return paths


def test_the_tree_of_the_readme_exists_and_leaves_no_folder_out() -> None:
    paths = tree_paths()
    assert [path for path in paths if not (ROOT / path).exists()] == []
    for package in ("diffusion_core", "workflows"):
        folders = {f"{package}/{one.parent.name}/" for one in (ROOT / package).glob("*/__init__.py")}
        assert folders <= set(paths)


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text()):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_serve_config_is_valid_and_its_arguments_are_ours() -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(values)
    (application,) = schema.applications
    module, name = application.import_path.split(":")
    assert (ROOT / (module.replace(".", "/") + ".py")).is_file()
    assert name == "build"
    ServeArgs.read(dict(application.args))
    assert "0.0.0.0" not in (ROOT / "deploy" / "serve.yaml").read_text()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


def test_the_workflow_file_calls_the_same_targets() -> None:
    """On every minor version of Python that has wheels of torch, and once with the lowest versions of everything."""
    text = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    job = yaml.safe_load(text)["jobs"]["check"]
    chosen = [(one["target"], one["python"]) for one in job["strategy"]["matrix"]["include"]]
    assert [python for target, python in chosen if target == "test"] == ["3.11", "3.12", "3.13"]
    assert ("lowest", "3.11") in chosen
    for target, _ in chosen:
        assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0
    assert "http" not in text
    assert "index" not in text


def test_pre_commit_has_the_versions_of_the_constraints() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = {name for hook in repository["hooks"] for name in hook.get("additional_dependencies", ())}
    assert {name.partition("==")[0] for name in pinned} == {"ruff", "import-linter"}
    assert pinned <= set((ROOT / "constraints.txt").read_text().splitlines())


def test_make_installs_once_in_either_order() -> None:
    """With fresh stamps neither `demo` nor `test` installs; with stale ones both do."""

    def would_install(target: str, *options: str) -> bool:
        done = subprocess.run(["make", "-n", *options, target], cwd=ROOT, capture_output=True, text=True, check=True)
        return "pip install" in done.stdout

    old = [word for name in (".installed", ".installed-dev") for word in ("-o", f".venv/{name}")]
    for target in ("demo", "test"):
        assert not would_install(target, *old)
        assert would_install(target, "-W", "pyproject.toml")


def test_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_constraints_are_exact_and_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.+!-]+", line)] == []
