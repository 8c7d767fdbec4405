"""A breakdown of the time of a step: a trace of a few steps, with kernels sorted into groups.

A trace names HLO instructions. The compiled module's text maps each to its place in the model
(`jit(train_step)/jvp(GPT.hidden)/blocks/layer_0/mlp/up/dot_general`). A fusion counts as its
root, so a residual sum that was fused into a norm counts as that norm.
"""

import collections
import contextlib
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from gpt_jax import files
from gpt_jax.errors import UserError

# The first pattern found in 'OP_NAME INSTRUCTION KERNEL' decides; without a match it is 'other'.
GROUPS: tuple[tuple[str, str], ...] = (
    ('communication', r'nccl|all-?reduce|all-?gather|reduce-?scatter|all-?to-?all|collective'),
    ('optimizer', r'/(optimizer|clip)/'),  # its matrix products too: Muon has some
    ('norm', r'_norm/'),
    ('products', r'/(query|key|value|output)/.*(dot|gemm)'),
    ('attention', r'[/(]attention/|fmha|sdpa|flash'),
    ('products', r'dot_general|gemm|cutlass|nvjet|cublas|(^| )dot'),
    ('dropout', r'[/(]dropout\W'),
    ('loss', r'[/(]loss\W'),
    ('activation', r'/mlp/'),
    ('embedding', r'/embedding/'),
    (
        'data movement',
        r'/(slice|stack|concatenate|pad|squeeze|transpose|reshape|broadcast_in_dim|copy) '
        r'|mem(cpy|set)|(^| )(wrapped_)?(copy|transpose|slice|concatenate|broadcast|bitcast)'
        r'(_fusion)?([._]\d+)?( |$)',
    ),
    ('reductions', r'reduce.window'),  # parts of long sums, whose operation XLA's CPU forgets
)
OTHER, GAPS = 'other', 'gaps'

# Location of a platform's kernels in a trace: the plane of the first device, prefix of lines.
DEVICE_LINES = {
    'cpu': ('/host:CPU', ''),
    'gpu': ('/device:GPU:0', 'Stream'),
    'tpu': ('/device:TPU:0', 'XLA Ops'),
}
# Instructions that only contain other instructions.
CONTROL_FLOW = re.compile(r' (while|conditional|call)\(')
INSTRUCTION = re.compile(r'\s*(?:ROOT )?%?([\w.-]+) = ')


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One execution of a kernel."""

    kernel: str  # its name in the trace
    instruction: str  # its HLO instruction; '' if the trace does not say
    start: float  # nanoseconds
    end: float


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """All executions of one kernel for one operation, summed over layers."""

    name: str
    group: str
    operation: str  # path in the model, '' if unknown
    count: float  # per step
    milliseconds: float  # per step


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """The breakdown of the time of a step; the groups add up to the step."""

    step_ms: float
    groups: dict[str, float]  # milliseconds per step, the largest first
    kernels: list[Kernel]  # the longest first


@contextlib.contextmanager
def exact_names() -> Iterator[None]:
    """Makes programs compiled in this context carry the names of the current source.

    Otherwise the persistent cache may return the same operations with the names from when they
    were first compiled.
    """
    key = 'jax_compilation_cache_include_metadata_in_key'
    before = getattr(jax.config, key)
    jax.config.update(key, True)
    try:
        yield
    finally:
        jax.config.update(key, before)


def record(folder: pathlib.Path, run: Callable[[], Any]) -> pathlib.Path:
    """Traces `run()` into `folder`; returns the file for `read_events`.

    Raises:
        UserError: the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.cannot_write(folder, error) from error
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # tracing Python calls would slow down the run
    with jax.profiler.trace(folder, profiler_options=options):
        run()
    return max(folder.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)


def read_events(path: pathlib.Path, *, platform: str) -> list[Event]:
    """Returns the kernels of the first device in a trace.

    Raises:
        UserError: the trace has no kernels.
    """
    plane_name, line_prefix = DEVICE_LINES[platform]
    data = jax.profiler.ProfileData.from_file(str(path))
    with warnings.catch_warnings():
        # jaxlib 0.12 warns when it creates the type of `event.stats`, and aborts if warnings are
        # errors.
        warnings.simplefilter('ignore', DeprecationWarning)
        traced = [
            (event, dict(event.stats))
            for plane in data.planes
            if plane.name == plane_name
            for line in plane.lines
            if line.name.startswith(line_prefix)
            for event in line.events
            if event.duration_ns > 0
        ]
    # On a CPU a kernel may only start its work and leave it to other threads. Then a separate
    # event, linked by number, marks the end of all of it.
    done = {
        stats.get('_c'): event.start_ns for event, stats in traced if event.name.startswith('end: ')
    }
    events = [
        _event(event, stats, done.get(stats.get('_p'), 0.0))
        for event, stats in traced
        # On a CPU one plane holds all threads, all devices, and events that are not kernels.
        if platform != 'cpu' or ('hlo_op' in stats and not stats.get('device_ordinal'))
    ]
    if not events:
        raise UserError(f'{path} shows no kernel on {plane_name}; leave out --profile')
    return events


def _event(event: Any, stats: dict[str, Any], done: float) -> Event:
    kernel = re.split(r' = ', event.name)[0].lstrip('%')  # on a TPU, a whole instruction
    return Event(
        kernel=kernel,
        instruction=str(stats.get('hlo_op', '')),
        start=event.start_ns,
        end=max(event.start_ns + event.duration_ns, done),
    )


def read_instructions(module: str) -> dict[str, str | None]:
    """Returns HLO instruction -> its op_name ('' if it has none), None for control flow.

    `module` is the text of a compiled module.
    """
    instructions = {}
    for line in module.splitlines():
        if match := INSTRUCTION.match(line):
            op_name = re.search(r'op_name="([^"]*)"', line)
            is_control = CONTROL_FLOW.search(line)
            instructions[match[1]] = None if is_control else op_name[1] if op_name else ''
    return instructions


def summarize(
    events: Iterable[Event], instructions: dict[str, str | None], *, steps: int
) -> Profile:
    """Sorts the time from the first event to the last, in which `steps` steps ran, into groups.

    Time in which several kernels run is split evenly between them; time in which none runs is
    the gaps.
    """
    # If the trace names no instruction, the kernel is named after it, with other punctuation.
    by_kernel = {_plain(name): name for name in instructions}
    located = []
    for event in events:
        name = event.instruction or by_kernel.get(_plain(event.kernel), '')
        op_name = instructions.get(name, '')
        if op_name is not None:
            located.append((event, name, op_name))
    shares, gaps, window = _share([event for event, _, _ in located])
    times, counts = collections.Counter(), collections.Counter()
    for (event, name, op_name), share in zip(located, shares, strict=True):
        key = (_stem(event.kernel), classify(op_name, name, event.kernel), _location(op_name))
        times[key] += share
        counts[key] += 1
    groups = collections.Counter({GAPS: gaps})
    for (_, group, _), time in times.items():
        groups[group] += time
    scale = 1e-6 / steps
    return Profile(
        step_ms=window * scale,
        groups={group: time * scale for group, time in groups.most_common()},
        kernels=[
            Kernel(*key, count=counts[key] / steps, milliseconds=time * scale)
            for key, time in times.most_common()
        ],
    )


def classify(op_name: str, instruction: str, kernel: str) -> str:
    """Returns the group of a kernel, by `GROUPS`."""
    subject = f'{op_name} {instruction} {kernel}'
    matches = (group for group, pattern in GROUPS if re.search(pattern, subject, re.IGNORECASE))
    return next(matches, OTHER)


def _share(events: list[Event]) -> tuple[list[float], float, float]:
    """Returns each event's share of the time from first to last, the gaps, and the whole time."""
    moments = [(event.start, 1, i) for i, event in enumerate(events)]
    moments += [(event.end, 0, i) for i, event in enumerate(events)]
    moments.sort()
    shares, gaps = [0.0] * len(events), 0.0
    running: set[int] = set()
    last = first = moments[0][0] if moments else 0.0
    for moment, starts, i in moments:
        for j in running:
            shares[j] += (moment - last) / len(running)
        if not running:
            gaps += moment - last
        last = moment
        if starts:
            running.add(i)
        else:
            running.remove(i)
    return shares, gaps, last - first


def _plain(name: str) -> str:
    return re.sub(r'\W', '_', name)


def _stem(kernel: str) -> str:
    """Strips the number at the end of a kernel's name, which tells copies of it apart."""
    return re.sub(r'[._]\d+$', '', kernel)


def _location(op_name: str) -> str:
    """Returns the path in the model, without the jitted function and the numbers of layers."""
    return re.sub(r'layer_\d+', 'layer_*', re.sub(r'^jit\(\w+\)/', '', op_name))


def _shorten(text: str, width: int) -> str:
    """Returns the end of a text, which is the most specific part of an operation's path."""
    return text if len(text) <= width else '…' + text[1 - width :]


def format_profile(profile: Profile, *, rows: int = 12) -> str:
    """Formats the table of groups, and the table of the `rows` longest kernels."""
    share = 100 / profile.step_ms
    lines = ['    ms/step   share  group']
    lines += [f'  {ms:9.3f}  {ms * share:5.1f}%  {name}' for name, ms in profile.groups.items()]
    lines += ['', '    ms/step   share   count  group          kernel: operation']
    lines += [
        f'  {each.milliseconds:9.3f}  {each.milliseconds * share:5.1f}%  {each.count:6g}  '
        f'{each.group:13}  {each.name}: {_shorten(each.operation, 90)}'
        for each in profile.kernels[:rows]
    ]
    return '\n'.join(lines)
