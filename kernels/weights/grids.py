"""The grids of the IQ2 and IQ3 formats: tables of points, each the magnitudes of 4 or 8 neighbouring numbers.

A point is written as 16 bits, a digit of 4 or 2 bits for each of its coordinates, the first one lowest. The points of a
grid are in ascending order of these, and a file names one by its index. What they are is a fact of the formats (ggml),
here as the gaps between them.
"""

from __future__ import annotations

import struct
import zlib
from binascii import a2b_base64
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a format, whose numbers are magnitudes divided by ``unit``, with signs and scales of their own."""

    magnitudes: tuple[int, ...]  # what a coordinate's digit stands for
    unit: int  # a power of two
    num_coordinates: int  # of a point: 4 or 8
    gaps: str = field(repr=False)  # between points of 16 bits: uint16, deflated, in base 64

    @cached_property
    def points(self) -> tuple[int, ...]:
        """Every point as 16 bits."""
        data = zlib.decompress(a2b_base64(self.gaps))
        return tuple(accumulate(struct.unpack(f"<{len(data) // 2}H", data)))

    @cached_property
    def index_bits(self) -> int:
        """Bits of a point's index."""
        return (len(self.points) - 1).bit_length()

    def coordinates(self, point: int) -> tuple[int, ...]:
        """The magnitudes that a point stands for."""
        digit_bits = 16 // self.num_coordinates
        mask = (1 << digit_bits) - 1
        return tuple(self.magnitudes[point >> shift & mask] for shift in range(0, 16, digit_bits))


IQ2_XXS = Grid(
    (8, 25, 43),
    unit=8,
    num_coordinates=8,
    gaps=(
        "eNpNkc0rRGEUxn/vHe8Y3800ZkaR6yMpFnfDTJKakkTZSFkow0psJIqampI/YkoxSSkplIUSC1K29la2UsrCRvHcO1fpds+555znPOc554JD"
        "RI9DrWyjfFRvOviOUSffrjhGhsUgZxlgnCQryroUKBk/Gw9xUeG6AlyShTDuo0d8cbY1wVOvy4KxIaYtnDlMkVHuSfBuq3ydwvUG89aC6R71"
        "YjoW+43xY6tqljJTHJDiLVDhkaekyj6XnFtf9QgdYnI4kb2W/wlxKU6F7WHQbJsMm1yY29b/G8do1rzqJutSkle/lcYWcqokKAcaCtK/o+gF"
        "41R5LTfMi6OLB6ZZtz5fTHsXZIuMscy7NDi6xReznJm48tPqf+Lb+v392mhOvZNUdKMGITe4c+7S/i5ZqdjVzfp55sP8/QuXChPMsKW6y5Fx"
        "TJP5tP5t21lSdpVHXaybbpqMFznkNTrDEHuan3FyNVf8AqMtPnA="
    ),
)
IQ2_XS = Grid(
    (8, 25, 43),
    unit=8,
    num_coordinates=8,
    gaps=(
        "eNp9ksFLVGEUxX/fG569ZJgaGceMMZ8mgxHFw8FFbSQTUiQXgY0j6jgutIgkCpyIWeS+dRBCiC1ahrsgCFetWtSf4Npdy3Dh+b55UzPDjAzv"
        "zb333Xvuuede8Ejo53HBvRP6r0cG2/yLenJNtq8vlbacOkpzVpLAISV50RIdcW+fm/RSNed38pQz0hUjzTC7zspyVd+nqZlmNrZLLmYyTiis"
        "ovMi7ilSVSRgW9GKfz6LpHIGurKIyCj6LGYbCXXftGdZxTLC3I0rjuRN8tVYz+O2vAneKKvCCUsU/dYpGn1Cp7q1AobYY5Q1zVVyKINieKS5"
        "0jzgibx3LJtACFn1KUidH8p8zRU26FG02t994nbtOs/si0GZOv8B29u03sd/bZ47y06/zKYUuivv0DRQLpHio1gX3Ax7nPqdLiiKlbNX4/Gd"
        "GSEVTeMGQnULxSbQhAEfpMAdyibDLaHPqTKvmvum5jcYpRjjum5hzOSZZdtk+eu4lFn1nvKNYxYsq/5OFxAJy+IV/+07rZ6f1X9d/jXZpXir"
        "CXENuaE7m9HeXvGI98bubdLV57W7nFlTfoo+SjG3rG6hpr1O80eKVI3PlFPhN1uq+cJlb5FP/GSefenU4/bbyw6HynkofW1slMfuBhf5ZQq8"
        "1HQ2apVZ4a3sAz1b0vUMx8dLCw=="
    ),
)
IQ2_S = Grid(
    (8, 25, 43),
    unit=8,
    num_coordinates=8,
    gaps=(
        "eNqdVc9rE0EU/qZlGjMMDR66dmNI/FFFKoVgQaqIBw9C8FaQtFJY9SAVbclFCqWXCP4H0lvPBW968yDkT/PLzGwys7uzxrLMzM7bN9+8970f"
        "Cyxhmc8SGmZe5molaWHfdPsb3l5D8hlWaHYKpxrUs5ja7DXHQYCkiDzXfWiQFVaRiXo7ipZ3ghub3j2+pox42AlselewKJffNvNIlH2Unhc+"
        "qkQLiWFKz+S9ALGFEa7zfRUr1LiPAQ5lleftErN+vFSt1/HI+n4fcUjjjXa2T9etqM//x2RMw3FaYrmPTQxFGNNe6eRZBVaKJ3hvEBL8kLFY"
        "2Xi0aI3i48dIu3t0YJ/CuolQm7sdrl3si2LGLeZZQoyx8zHFpfB5fopbzpJv+MIbX2CDmCdrIYt5bNs1taBLGdGM1Etd7PKs1SYfAubFVfNs"
        "kaxQLkajCkb7uIcDYXM1dn4jejbBJ/c2kXUVVV8nV8vplF6NxaKnq6wfzzJoIsrfFftHnlkT3vYZd7EvbX8Iu9K/eUrJk+XrFXuxjFjSJ3KX"
        "lXqM7zgSU8lrbOOQknWRIVubI9vO0il1Qu11nmpGthx3Q1O7jZnkZ4nJ3sI8KpzMIjIJKnAXGddnzLE/eMyzD1iRmfTt09Foz1EULt1NH/BG"
        "1OfhHr9keEkeL0Qe3Y/0dkD5czGS+R/xmquJXb6d074LrrYn7ZnZdqQp4gA3WfUpdsRv0cUpfuERvlIj4VjBW9zBXxjUTgg="
    ),
)
IQ3_XXS = Grid(
    (4, 12, 20, 28, 36, 44, 52, 62),
    unit=4,
    num_coordinates=4,
    gaps=(
        "eNpFkD9Lw1AUxU9CCQkxhhKCUGoMxU1CEHcR1+Lg7kfSkkEnBxUdi3Ry0VKzO4h0F/VzCP7u6x8J7933zjvn3HMj+XwJq6OIPVVX+9TzJZqC"
        "x65m6qtZslOHmKanQAXswKkzDXWvXRjG9h2+p1I/qjWG7auCfRuuvBfVdJEmDjHsc9071bFGnApS5fhc4zHUO/sA30tte4Vew38ny9rVzHnG"
        "S4cDN1njbouUOXtOHpvtjNXiPyF1D+6FZ2lqvYSrGSu4yTpFRn123XJeSt2Q5FdbpBnh3sdhBlKRsdJDmKHxQTskHcOKUAS60yGsE7ysc6Ur"
        "L3bu32FN5wZGSZ2BHHE71RSmzd2A7nhzxyydYgrjCac3NJtey+mLzvZufyAiSak5c32QK9Ejma1fC2r/aKAN7w+/SDdw"
    ),
)
IQ3_S = Grid(
    (1, 3, 5, 7, 9, 11, 13, 15),
    unit=1,
    num_coordinates=4,
    gaps=(
        "eNpNk81u00AUhS8TJ7XbeKw4Lqihjhu2BdFK7BASPB4F2gi6Q6BKwK78lC0sui8SgndgifoKfPd4UqqRM3fuzznn3pmY3WANLFghK7DW2TOL"
        "VmIPdA6yK04De5ryxsrawJORkRFt+S3tUH7H8+wN5TjaCqnFWnJ2v2M6RwQt2KZwntlUiO6N+u3sJdFtPsePQu+wXglhbgtOR1K+ynElp/l/"
        "nUGrSD14TaB2Iq3Ov66qSmyV4iM7sDrNJUtKampqmLyvQrkjRUsURNT0U2rF0s/k4zXMzn7iGSj+7WqiDfq8eplfVxmkz3sp0oz686Z4AzMK"
        "UtTPf5w4vkjZTNhr8NfEZ3ieq8cx/a5Yo92016jfwl8pts/vEdGJOKaoXJI5pP4B0fd8fjtTMr7m1ZXC3irTDGvvQ54qTWJHGg4UqXU/Z5pN"
        "mXqbaI/M21/EEJZK08jsjbCdr2a19s527TxNd2oXeX8nmV5YxdrhjQz1vioh9dFTqXPcmv0WudGOxV6mW7pgvwNiwQSOsWf2BI0Lu8s0h3ab"
        "SLSzPCaVPV+D/SJ1XtHDY97RRAwj9H2mroCr5eyZh9RsE23sB98uVZfqZG6X+erN3rMTOlizR/YJNVF9+ywb9s7+kNvZW3D20fXBHtovav7m"
        "rmYLq6FvZzpBzZTMYN91pyPNZkE/e5znYPf/6j37Ddu53edF/gN3oD85"
    ),
)
