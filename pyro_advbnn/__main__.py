"""pyro-advbnn COMMAND, or python -m pyro_advbnn COMMAND: all commands under one name, each imported when it is called."""
import sys
from importlib import import_module

from pyro_advbnn.cli import commands

_FIRST_LINES = {
    "train": "Train one defence on one data set into a run folder.",
    "evaluate": "What trained runs are worth, each figure of the paper, and one page of it all; takes a verb.",
    "reproduce": "The paper's evidence from nothing, each piece by one command; takes a verb.",
    "benchmark": "Time Adv-BNN, the same network without Bayes, and Adv-BNN written otherwise.",
    "demo": "Train three defences on digits and attack them: minutes on two cores.",
}


def main():
    """Run the command that the first word of the process names, with the words after it."""
    if "" not in sys.path:
        sys.path.append("")                              # the working folder: --network may name a module that lies there
    words = sys.argv[1:]
    if words and words[0] in _FIRST_LINES:
        return import_module(f"pyro_advbnn.{words[0]}").main(words[1:], under=words[0])
    commands.run(_FIRST_LINES, words)


if __name__ == "__main__":
    main()
