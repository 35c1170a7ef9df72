"""How large the numbers of flags may be: what is beyond is a slip of the keyboard, and would fill the memory or never end."""
from typing import Annotated

from pyro_advbnn.cli.flag_types import Range

BatchSize = Annotated[int, Range(1, 1_000_000)]
Count = Annotated[int, Range(1, 100_000)]                            # draws, or steps
CountOrNone = Annotated[int, Range(0, 100_000)]
Epochs = Annotated[int, Range(1, 1_000_000)]
Images = Annotated[int, Range(1, 1_000_000_000)]                     # a data set has fewer, and says so
ImagesOrNone = Annotated[int, Range(0, 1_000_000_000)]
Minutes = Annotated[float, Range(0, 10_000_000, open_low=True)]      # 19 years
Queries = Annotated[int, Range(1, 10_000_000)]
Repeats = Annotated[int, Range(1, 10_000)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Side = Annotated[int, Range(1, 2048)]                                # pixels
Width = Annotated[int, Range(1, 4096)]                               # channels
Workers = Annotated[int, Range(0, 256)]
