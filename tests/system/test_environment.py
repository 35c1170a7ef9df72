import json

from pyro_advbnn.system.environment import environment


def test_the_environment_names_versions_commit_and_hardware():
    found = environment()
    assert found["versions"]["torch"].startswith("2.") and found["hardware"]["cpu_cores"] >= 1
    assert json.loads(json.dumps(found)) == found
