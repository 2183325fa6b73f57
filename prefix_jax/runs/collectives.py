"""What devices send to each other, read out of a compiled program's HLO text."""

import collections
import dataclasses
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf" = (.*?) ({_KINDS})(-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_UNTIL = re.compile(r"ROOT .* compare\(.*?%?([\w.\-]+)\), direction=LT")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_CALLED = re.compile(
    r"(?:calls|to_apply|condition|body|true_computation|false_computation)"
    r"=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_ARRAY = re.compile(r"\b(pred|[sufb]\w*?(\d+)\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of operation between devices on arrays of one shape."""

    kind: str
    array: str
    """What each device gets, as HLO writes it, such as f32[12,5,64]."""
    bytes: int
    """Of that."""
    times: int
    """In one call of the program; a loop of unknown length counts once."""


def collectives(hlo: str) -> list[Collective]:
    """Those of a compiled program, the most bytes in all first."""
    lines, entry = _computations(hlo)
    times: collections.Counter[str] = collections.Counter()

    def count(name, factor):
        times[name] += factor
        for line in lines.get(name, ()):
            loop = _WHILE.search(line)
            for called in _called(line):
                rounds = _trips(lines[loop[1]]) if loop and called == loop[2] else 1
                count(called, factor * rounds)

    count(entry, 1)
    found: collections.Counter[tuple[str, str, int]] = collections.Counter()
    for name, factor in times.items():
        for line in lines.get(name, ()):
            if operation := _OPERATION.search(line):
                array, size = _result(*operation.groups())
                found[operation[2], array, size] += factor
    rows = [Collective(*key, times) for key, times in found.items()]
    return sorted(rows, key=lambda row: -row.bytes * row.times)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the one that is run."""
    lines: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        if begins := _COMPUTATION.match(line):
            name = begins[2]
            lines[name] = []
            entry = name if begins[1] else entry
        elif line == "}":
            name = ""
        elif name:
            lines[name].append(line)
    return lines, entry


def _trips(condition: list[str]) -> int:
    """Rounds of a loop that counts from 0 to a constant, as scans do; of others 1."""
    until = _UNTIL.search(condition[-1])
    found = [_CONSTANT.search(line) for line in condition]
    numbers = {one[1]: int(one[2]) for one in found if one}
    return numbers.get(until[1], 1) if until else 1


def _called(line: str) -> list[str]:
    names = []
    for one, several in _CALLED.findall(line):
        names += [one] if one else re.findall(r"[\w.\-]+", several)
    return names


def _result(text: str, kind: str, started: str | None) -> tuple[str, int]:
    """An operation's result, or what it will be once a started one is done."""
    arrays = _ARRAY.findall(text)
    if started and kind == "collective-permute":  # operand, result, two marks
        arrays = arrays[1:2]
    elif started and kind != "all-reduce":  # operands, results
        arrays = arrays[len(arrays) // 2 :]
    size = sum(
        math.prod(int(n) for n in dims.split(",") if n) * max(int(bits or 8), 8) // 8
        for _, bits, dims in arrays
    )
    return " ".join(f"{kind}[{dims}]" for kind, _, dims in arrays), size
