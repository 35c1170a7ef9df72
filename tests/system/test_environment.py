import json
import subprocess

from pyro_advbnn.system import environment as module
from pyro_advbnn.system.environment import environment


def test_the_environment_names_versions_commit_and_hardware():
    found = environment()
    assert found["versions"]["torch"].startswith("2.") and found["hardware"]["cpu_cores"] >= 1
    assert json.loads(json.dumps(found)) == found


def test_a_clone_has_a_commit_and_an_installed_package_none_though_a_repository_lies_around_it(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    package = tmp_path / "site-packages" / "pyro_advbnn"
    package.mkdir(parents=True)
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "of another project"], check=True)
    monkeypatch.setattr(module, "__file__", str(package / "system" / "environment.py"))
    assert environment()["git_commit"] is None
    monkeypatch.setattr(module, "__file__", str(tmp_path / "pyro_advbnn" / "system" / "environment.py"))
    assert len(environment()["git_commit"]) == 40
