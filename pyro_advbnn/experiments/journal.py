"""What of a plan is done: <out>/reproduce.jsonl, a line of the plan's settings and one per command that is finished."""
from pyro_advbnn.system import json_files
from pyro_advbnn.system.errors import InputError
from pyro_advbnn.training import run_folders


class Journal:
    """The journal of a `plans.Plan`.   Raises InputError where its folder holds another plan's, or something else."""

    def __init__(self, plan):
        self.path, self.plan = plan.out / "reproduce.jsonl", plan
        if not self.path.exists():
            run_folders.refuse_existing(plan.out, hint="")
        lines = json_files.read_jsonl(self.path)
        if lines and lines[0] != {"settings": plan.identity}:
            raise InputError(f"{plan.out} holds a reproduction with other flags ({_difference(lines[0], plan.identity)}); "
                             f"choose another --out")
        self._done = {line.get("command") for line in lines[1:]}

    def open(self):
        """Make the journal, where it is not there yet."""
        if not json_files.read_jsonl(self.path):
            json_files.write_jsonl(self.path, [{"settings": self.plan.identity}])

    def waiting(self):
        """The steps of the plan that are not done, or whose results are lost."""
        return [step for step in self.plan.steps
                if self._name(step) not in self._done or not all(path.exists() for path in step.leaves)]

    def note(self, step, seconds):
        """The step is done, which took `seconds`."""
        json_files.append_jsonl(self.path, {"command": self._name(step), "seconds": round(seconds, 1)})

    def _name(self, step):
        return step.command.replace(str(self.plan.out), "OUT")           # so that the folder may be moved


def _difference(before, now):
    before = before.get("settings", {})
    return ", ".join(f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name])
