"""``python -m kernels compile``: every kernel for every architecture, with no GPU needed."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from kernels.errors import CompileFailed
from kernels.kernel_variants import variants
from kernels.runtime.compiler import Compiler, Variant

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120")
SERIALISED = re.compile(r".*(?:\bC751[0-2]\b|\bwgmma\b.*\bserialized\b).*")
"""What ptxas says where it makes wgmma synchronous: it is short of registers, or they are touched too early."""

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel takes of an SM, as ptxas says."""

    kernel: str
    registers: int  # of a thread
    shared_bytes: int  # static, of a block
    spill_bytes: int  # stored and loaded, of a thread


def usages(log: str) -> Iterator[Usage]:
    """Read the output of ``ptxas -v``."""
    kernel, spill_bytes = "", 0
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            kernel, spill_bytes = entry[1], 0
        elif spills := _SPILLS.search(line):
            spill_bytes = int(spills[1]) + int(spills[2])
        elif kernel and (used := _USED.search(line)):
            shared = _SHARED.search(line)
            yield Usage(kernel, int(used[1]), int(shared[1]) if shared else 0, spill_bytes)
            kernel = ""


def compile_all(architectures: Sequence[str], chosen: Sequence[Variant]) -> bool:
    """Compile and print one row a kernel; whether all is well."""
    good = True
    print(f"{'arch':7} {'file':26} {'defines':44} {'kernel':36} {'registers':>9} {'shared':>7} {'spills':>7}")
    jobs = [(Compiler(arch), source, defines) for arch in architectures for source, defines in chosen]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pending = [(job, pool.submit(job[0].cubin, *job[1:])) for job in jobs]
        for (compiler, source, defines), cubin in pending:
            shown = " ".join(f"{name}={value}" for name, value in sorted(defines.items()))
            try:
                log = cubin.result().log
            except CompileFailed as error:
                print(f"{compiler.arch} {error}", file=sys.stderr)
                good = False
                continue
            for usage in usages(log):
                numbers = f"{usage.registers:9} {usage.shared_bytes:7} {usage.spill_bytes:7}"
                print(f"{compiler.arch:7} {source:26} {shown:44} {usage.kernel:36} {numbers}", flush=True)
            for note in SERIALISED.findall(log):
                print(f"{compiler.arch} {source}.cu ({shown}): {note}", file=sys.stderr)
                good = False
    return good


def main() -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kernels")
    compile_ = parser.add_subparsers(required=True).add_parser("compile", help="compile every kernel, print its costs")
    compile_.add_argument("--arch", nargs="+", default=ARCHITECTURES, metavar="sm_XY")
    compile_.add_argument("--file", help="only this file of kernels/cuda, such as norm/norm", metavar="STEM")
    arguments = parser.parse_args()
    chosen = [variant for variant in variants() if arguments.file in (None, variant[0])]
    return 0 if compile_all(arguments.arch, chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
