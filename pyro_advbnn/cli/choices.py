"""Words that flags and the config.json of a run may hold, where no table of what they stand for has them as its keys."""
from typing import Literal

BatchNorm = Literal["sync", "broadcast"]
CudaGraphs = Literal["auto", "on", "off"]
Initialization = Literal["default", "authors"]
KLOver = Literal["all", "last"]
Optimizer = Literal["adam", "sgd"]
Schedule = Literal["stages", "cosine", "constant"]
