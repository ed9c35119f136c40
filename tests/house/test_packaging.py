"""After pip has installed Elemta, in either way, twistd finds it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHIPPED = ("elemta", "twisted", "setup.py", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, so that builds leave nothing in the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def make_environment(directory: Path) -> Path:
    """A virtual environment that sees what this one has installed, but not Elemta."""
    venv.create(directory, with_pip=False, symlinks=True)
    # What a .pth file names is searched, yet the .pth files in it, an editable Elemta's, are not read.
    (site_packages(directory) / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    return make_environment(tmp_path / "venv")


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which ``pip install .`` was done."""
    directory = make_environment(tmp_path_factory.mktemp("installed") / "venv")
    install(directory, str(source))
    return directory


def site_packages(environment: Path) -> Path:
    (site,) = environment.glob("lib/python*/site-packages")
    return site


def install(environment: Path, *arguments: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet", "--no-index"]
    run = subprocess.run(
        [*pip, "--no-deps", "--no-build-isolation", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def python(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    elsewhere = environment.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        [str(environment / "bin" / "python"), *arguments],
        cwd=elsewhere,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def twistd(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(environment, "-c", "from twisted.scripts.twistd import run; run()", *arguments)


def is_offered(run: subprocess.CompletedProcess[str]) -> bool:
    return any(line.split()[:1] == ["elemta"] for line in run.stdout.splitlines())


def test_before_it_is_installed_twistd_does_not_know_it(environment: Path) -> None:
    run = twistd(environment, "--help")
    assert run.returncode == 0, run.stderr
    assert not is_offered(run)


def is_found_and_builds(environment: Path, where: Path) -> None:
    assert is_offered(twistd(environment, "--help"))
    check = twistd(environment, "-n", "elemta", "--check")
    assert check.returncode == 0, check.stderr
    files = python(
        environment, "-c", "import elemta, twisted; print(elemta.__file__); print(twisted.__file__)"
    )
    ours, theirs = files.stdout.splitlines()
    assert ours.startswith(str(where))
    assert theirs.endswith("twisted/__init__.py")  # Twisted's own, not shadowed by our twisted/plugins


def test_twistd_finds_elemta_after_an_install(installed: Path) -> None:
    is_found_and_builds(installed, site_packages(installed))


def test_twistd_finds_elemta_after_an_editable_install(environment: Path, source: Path) -> None:
    install(environment, "--editable", str(source))
    is_found_and_builds(environment, source)


def test_no_package_of_ours_shadows_twisted(installed: Path) -> None:
    shipped = {path.name for path in (site_packages(installed) / "twisted" / "plugins").glob("*.py")}
    assert shipped == {path.name for path in (ROOT / "twisted" / "plugins").glob("*.py")}
    assert "__init__.py" not in shipped
    assert not (site_packages(installed) / "twisted" / "__init__.py").exists()


def test_what_is_not_code_is_installed_too_and_the_tests_are_not(installed: Path) -> None:
    assert (site_packages(installed) / "elemta" / "py.typed").exists()
    assert (installed / "bin" / "elemtactl").exists()
    assert not (site_packages(installed) / "tests").exists()
    assert not (site_packages(installed) / "docs").exists()


def test_an_unwritable_plugin_cache_costs_at_most_a_line(installed: Path) -> None:
    cache = site_packages(installed) / "twisted" / "plugins" / "dropin.cache"
    cache.unlink(missing_ok=True)
    cache.mkdir()  # a directory can't be replaced by a file, not even by root, which a mode would not stop
    check = twistd(installed, "-n", "elemta", "--check")
    cache.rmdir()
    assert check.returncode == 0, check.stderr
    assert "the configuration is good" in check.stdout
    assert "Traceback" not in check.stdout + check.stderr


def test_listing_twistds_plugins_imports_neither_the_daemon_nor_a_reactor(installed: Path) -> None:
    program = (
        "import sys; from twisted.application.service import IServiceMaker;"
        "from twisted.plugin import getPlugins;"
        "names = [maker.tapname for maker in getPlugins(IServiceMaker)];"
        "print('elemta' in names, 'elemta.tap' in sys.modules, 'twisted.internet.reactor' in sys.modules)"
    )
    assert python(installed, "-c", program).stdout.split() == ["True", "False", "False"]
