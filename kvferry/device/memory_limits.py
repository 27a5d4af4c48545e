"""How much memory this process may still take: the machine's and its control groups' view."""

from pathlib import Path


def available_memory_bytes(proc: Path = Path("/proc"), cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken before the machine or a control group runs out: the smallest of all limits."""
    limits = [_machine_available_bytes(proc / "meminfo")]
    limits += [
        free for folder in _cgroup_folders(proc, cgroup_root) if (free := _cgroup_free_bytes(folder)) is not None
    ]
    return min(limits)


def _machine_available_bytes(meminfo: Path) -> int:
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise ValueError(f"{meminfo} has no MemAvailable line")


def _cgroup_folders(proc: Path, root: Path) -> list[Path]:
    """This process's groups and all above them, since each ancestor's limit counts too."""
    listing = proc / "self" / "cgroup"
    if not listing.exists():
        return [root]
    folders: dict[Path, None] = {root: None, root / "memory": None}
    for line in listing.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        relative = Path(path.lstrip("/"))
        folders.update({base / part: None for part in (relative, *relative.parents)})
    return list(folders)


def _cgroup_free_bytes(folder: Path) -> int | None:
    """What the group's limit leaves, page cache that can be dropped counted as free; None without a limit."""
    for limit_name, used_name in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        limit_file, used_file = folder / limit_name, folder / used_name
        if limit_file.exists() and used_file.exists():
            limit = limit_file.read_text().strip()
            if limit == "max":
                return None
            free = int(limit) - int(used_file.read_text()) + _reclaimable_bytes(folder / "memory.stat")
            return max(free, 0)
    return None


def _reclaimable_bytes(stat: Path) -> int:
    if not stat.exists():
        return 0
    fields = dict(line.split(" ", 1) for line in stat.read_text().splitlines() if " " in line)
    return int(fields.get("inactive_file", "0"))
