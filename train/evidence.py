"""What the system and the stacks of a process tell about it, for the watchdog of a rank. Standard library only.

In: a process id, or what faulthandler wrote. Out: states of threads, frames, and whether they wait for other ranks.
"""

import re
from pathlib import Path

_WAITS_IN = ("/torch/distributed/", "/deepspeed/comm/", "/train/engine/exchange.py")
_WAITS_BY = (" in wait", " in synchronize")


def process_state(pid: int) -> str:
    """As "S (sleeping)"; "" if there is no such process."""
    return _field(f"/proc/{pid}/status", "State:")


def system_threads(pid: int) -> list[str]:
    """A line for each thread: number, name, state, and where in the kernel it waits."""
    try:
        threads = sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    lines = [f"resident: {_field(f'/proc/{pid}/status', 'VmRSS:')}; threads of the system: {len(threads)}"]
    for thread in threads:
        place = f"/proc/{pid}/task/{thread}"
        lines.append(
            f"  {thread}  {_field(f'{place}/status', 'State:')}  {_content(f'{place}/wchan')}"
            f"  {_content(f'{place}/comm')}"
        )
    return lines


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since the machine started; 0 if it does not tell."""
    return int(_field("/proc/vmstat", "oom_kill ") or 0)


def frames_of(stacks: str, thread: int) -> list[str]:
    """The frames of one thread of Python, innermost first, from what faulthandler writes."""
    parts = re.split(r"^(?:Current thread|Thread) 0x([0-9a-f]+).*$", stacks, flags=re.MULTILINE)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        if int(number, 16) == thread:
            return [line.strip() for line in text.splitlines() if line.startswith("  File ")]
    return []


def waits_for_others(frames: list[str]) -> bool:
    """The thread is in a collective: in torch.distributed, or waiting for what it began there. On a GPU collectives
    return at once, and the rank waits where it wants the numbers: those that ranks tell each other come through
    `train/engine/exchange.py` alone."""
    if any(place in frame for frame in frames[:4] for place in _WAITS_IN):
        return True
    return bool(frames) and frames[0].endswith(_WAITS_BY) and ("/torch/" in frames[0] or "/deepspeed/" in frames[0])


def describe(state: str, frames: list[str]) -> str:
    """What the rank does, in a clause: its state as `process_state` gives it, and the frames of its main thread."""
    where = "waits for other ranks in" if waits_for_others(frames) else "is in"
    match state[:1]:
        case "T" | "t":
            return f"the process is stopped (state {state}) and cannot write its stacks"
        case "D":
            return f"the process is in uninterruptible sleep (state {state}): a disk, network or driver does not answer"
        case _:
            return f"it {where} {_short(frames[0])}" if frames else f"it wrote no stacks (state {state})"


def _short(frame: str) -> str:
    """As "all_reduce (distributed/distributed_c10d.py:3252)"."""
    if not (found := re.match(r'File "(.*)", line (\d+) in (.*)', frame)):
        return frame
    path, line, function = found.groups()
    return f"{function} ({'/'.join(path.split('/')[-2:])}:{line})"


def _field(path: str, name: str) -> str:
    for line in _content(path).splitlines():
        if line.startswith(name):
            return line.removeprefix(name).strip()
    return ""


def _content(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""
