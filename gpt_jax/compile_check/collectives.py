"""The bytes that a compiled step sends over the interconnect, read from its HLO text.

XLA's cost analysis counts the body of a loop once, so loops are multiplied here by their trip
count. A collective that a TPU overlaps with computation appears several times with one channel:
at its start, in each fusion that continues it, perhaps inside a loop, and at its end. It is
counted as often as the one of these that runs least.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
BETWEEN_SLICES = 'between slices'  # what TPU slices send over the data centre's network

_OPCODES = '|'.join([*(f'{kind}(?:-start)?' for kind in KINDS), 'send'])
_COLLECTIVE = re.compile(rf'^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({_OPCODES})\(')
_WHILE = re.compile(r' while\((?:[^()]*\))?\s*%?([\w.\-]+)\)')
_ARRAY = re.compile(r'\b(pred|[subf]\w*?\d+\w*)\[([\d,]*)\]')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{?\s*$')
_CALLED = re.compile(r'(?:calls|to_apply|condition|body)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'(?:branch|called)_computations=\{([^}]*)\}')
_MESH = re.compile(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}')
_IOTA = re.compile(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?')
_LISTED = re.compile(r'replica_groups=\{(\{[\d,{} ]*\})\}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """One kind of collective in a step; bytes are sent per device."""

    kind: str  # of KINDS, or BETWEEN_SLICES
    calls: int
    sent_bytes: float
    network_bytes: float  # of these, in collectives that span slices or nodes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTraffic:
    """All collectives of a step."""

    traffic: tuple[Traffic, ...]
    unknown_loops: int  # loops without a known trip count; their bodies count once

    def interconnect_bytes(self) -> float:
        """Returns the bytes that a device sends within its slice or node."""
        return sum(each.sent_bytes - each.network_bytes for each in self.traffic)

    def network_bytes(self) -> float:
        """Returns the bytes that a device sends to other slices or nodes."""
        return sum(each.network_bytes for each in self.traffic)


def read_traffic(hlo: str, *, slices: Sequence[int], steps: int = 1) -> StepTraffic:
    """Reads a compiled module of `steps` steps; returns the traffic of one step.

    Bytes are those of ring algorithms over `n` members (Thakur et al. 2005). An all-gather or
    reduce-scatter of S bytes in all sends S (n-1)/n, an all-reduce twice that. An all-to-all sends
    S (n-1)/n of a device's own S bytes, a permutation all S.

    Args:
      hlo: `compiled.as_text()`.
      slices: the slice or node of each partition, in the order of the mesh's devices.
    """
    module = _Module(hlo)
    found: dict[tuple, tuple[float, float, bool]] = {}
    for computation, lines in module.computations.items():
        times = module.times(computation)
        if not times:
            continue
        scattered = computation.startswith('all-reduce-scatter')  # a TPU's fused reduce-scatter
        for number, line in enumerate(lines):
            match = _COLLECTIVE.match(line)
            if match is None:
                continue
            shape, opcode = match.groups()
            kind = opcode.removesuffix('-start')
            groups = _groups(line, len(slices))
            if kind == 'send':
                if 'is_host_transfer=true' not in line:
                    continue
                kind, sent, far = BETWEEN_SLICES, _sizes(shape)[0], True
            else:
                kind = 'reduce-scatter' if scattered and kind == 'all-reduce' else kind
                sent = _sent_bytes(opcode, shape, len(groups[0]), scattered=scattered)
                far = any(len({slices[member] for member in group}) > 1 for group in groups)
            channel = re.search(r'channel_id=(\d+)', line)
            place = channel[1] if channel else (computation, number)
            key = (kind, place, tuple(_ARRAY.findall(shape)))
            if key not in found or times < found[key][0]:
                found[key] = (times, sent, far)
    totals: dict[str, list[float]] = collections.defaultdict(lambda: [0, 0.0, 0.0])
    for (kind, *_), (times, sent, far) in found.items():
        total = totals[kind]
        times /= steps
        total[0] += times
        total[1] += times * sent
        total[2] += times * sent * far
    traffic = tuple(
        Traffic(kind=kind, calls=round(calls), sent_bytes=sent, network_bytes=far)
        for kind, (calls, sent, far) in sorted(totals.items(), key=lambda item: -item[1][1])
    )
    return StepTraffic(traffic=traffic, unknown_loops=module.unknown_loops)


class _Module:
    """The computations of a module by name, and the number of times that each runs."""

    def __init__(self, hlo: str):
        self.computations: dict[str, list[str]] = {}
        self.entry = ''
        lines: list[str] = []
        for line in hlo.splitlines():
            if line and not line[0].isspace() and line.endswith('{'):
                header = _HEADER.match(line)
                if header is None:
                    continue
                lines = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif line.startswith(' '):
                lines.append(line)
        self.unknown_loops = 0
        self._callers = collections.defaultdict(list)  # callee -> (caller, times)
        for caller, body in self.computations.items():
            for line in body:
                for callee, times in self._calls(caller, line):
                    self._callers[callee].append((caller, times))

    @functools.cache  # noqa: B019 (a module is only alive while it is read)
    def times(self, computation: str) -> float:
        """Returns the number of times that a computation runs."""
        if computation == self.entry:
            return 1
        return sum(times * self.times(caller) for caller, times in self._callers[computation])

    def _calls(self, caller: str, line: str) -> Iterator[tuple[str, float]]:
        is_while = ' while(' in line
        trips = self._trips(caller, line) if is_while else 1
        for callee in _CALLED.findall(line):
            yield callee, trips
        for branches in _BRANCHES.findall(line):
            for callee in branches.replace('%', '').split(','):
                yield callee.strip(), 1

    def _trips(self, caller: str, line: str) -> float:
        """Returns the trip count of a while, as annotated by XLA or from its condition."""
        known = re.search(r'known_trip_count\D+(\d+)', line)
        if known:
            return int(known[1])
        called = dict(re.findall(r'(condition|body)=%?([\w.\-]+)', line))
        condition = self.computations.get(called.get('condition', ''), [])
        constants = _constants(condition)
        for instruction in condition:
            compare = re.search(
                r' compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT', instruction
            )
            if compare and compare[2] in constants:
                start, step = self._start_and_step(caller, line, called, condition, compare[1])
                return math.ceil((constants[compare[2]] - start) / step)
        self.unknown_loops += 1
        return 1

    def _start_and_step(
        self, caller: str, line: str, called: dict[str, str], condition: list[str], counter: str
    ) -> tuple[int, int]:
        """Returns the start and increment of a loop's counter, by default 0 and 1."""
        element = next(
            (
                re.search(r'index=(\d+)', each)
                for each in condition
                if re.match(rf'\s+%?{re.escape(counter)} = ', each)
            ),
            None,
        )
        operand = _WHILE.search(line)
        if element is None or operand is None:
            return 0, 1
        index = int(element[1])
        start, step = 0, 1
        carried = _operands(self.computations[caller], operand[1], 'tuple')
        if index < len(carried):
            start = _constants(self.computations[caller]).get(carried[index], 0)
        body = self.computations.get(called.get('body', ''), [])
        root = next((each for each in body if each.lstrip().startswith('ROOT ')), '')
        returned = re.findall(r'%([\w.\-]+)', root.partition(' tuple(')[2].partition('), ')[0])
        if index < len(returned):
            added = _operands(body, returned[index], 'add')
            step = next((_constants(body)[name] for name in added if name in _constants(body)), 1)
        return start, max(1, step)


def _constants(lines: list[str]) -> dict[str, int]:
    found = (re.match(r'\s+%?([\w.\-]+) = \S+ constant\((\d+)\)', line) for line in lines)
    return {match[1]: int(match[2]) for match in found if match}


def _operands(lines: list[str], name: str, opcode: str) -> list[str]:
    """Returns the operands of the instruction `name`, if it is an `opcode`."""
    for line in lines:
        if re.match(rf'\s+(?:ROOT )?%?{re.escape(name)} = ', line):
            inside = line.partition(f' {opcode}(')[2].partition(')')[0]
            return re.findall(r'%([\w.\-]+)', inside)
    return []


def _sizes(shape: str) -> list[float]:
    """Returns the bytes of each array of a type, without the scalars of an asynchronous start."""
    sizes = []
    for dtype, dimensions in _ARRAY.findall(shape):
        if dtype == 'u32' and not dimensions:
            continue
        bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype)[0])
        sizes.append(bits / 8 * math.prod(int(n) for n in dimensions.split(',') if n))
    return sizes


def _sent_bytes(opcode: str, shape: str, members: int, *, scattered: bool) -> float:
    """Returns the bytes that a device sends in a collective that returns `shape`."""
    n, total = members, sum(_sizes(shape))
    kind = opcode.removesuffix('-start')
    if opcode == 'all-gather-start':  # also returns its operands
        total *= n / (n + 1)
    if opcode == 'collective-permute-start':
        total /= 2
    if kind == 'collective-permute':
        return total
    if kind == 'reduce-scatter':
        return total * (n - 1)
    if kind == 'all-reduce' and not scattered:
        return 2 * total * (n - 1) / n
    return total * (n - 1) / n


def _groups(line: str, partitions: int) -> list[list[int]]:
    """Returns the members of each group of a collective, from any of XLA's formats."""
    if pairs := re.search(r'source_target_pairs=\{(.*?)\}\}', line):
        return [list(map(int, pair.split(','))) for pair in re.findall(r'\{([\d,]+)', pairs[1])]
    if mesh := _MESH.search(line):
        axes = [(name, int(size)) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh[1])]
        ids = np.arange(math.prod(size for _, size in axes)).reshape([size for _, size in axes])
        named = re.findall(r"'([^']+)'", mesh[2])
        inside = [i for i, (name, _) in enumerate(axes) if name in named]
        outside = [i for i in range(len(axes)) if i not in inside]
        members = math.prod(axes[i][1] for i in inside)
        return ids.transpose(outside + inside).reshape(-1, members).tolist()
    if iota := _IOTA.search(line):
        groups, dims = (list(map(int, iota[i].split(','))) for i in (1, 2))
        ids = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            ids = ids.transpose(list(map(int, iota[3].split(','))))
        return ids.reshape(-1, groups[-1]).tolist()
    if listed := _LISTED.search(line):
        return [list(map(int, group.split(','))) for group in re.findall(r'\{([\d, ]+)', listed[1])]
    return [list(range(partitions))]
