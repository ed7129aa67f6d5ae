"""Opens the safetensors files of a model directory and finds which file holds which tensor."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from .config_keys import read_json

_LISTED = 6                          # names shown in an error


def some(names: list[str]) -> str:
    """The first few names of a list, for an error."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def open_files(folder: Path) -> tuple[dict[Path, safe_open], dict[str, Path]]:
    """The memory-mapped files, and tensor name -> file; ValueError names what is damaged."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    listed: dict[str, str] = {}
    if index.exists():
        listed = read_json(index).get("weight_map") or {}
        if not listed:
            raise ValueError(f"{index} must hold a non-empty weight_map")
        paths = [folder / name for name in sorted(set(listed.values()))]
    elif single.exists():
        paths = [single]
    else:
        raise ValueError(f"{folder} must hold model.safetensors or model.safetensors.index.json "
                         f"with its shards; neither exists")
    files = {path: _open_file(path) for path in paths}
    where = {name: path for path, file in files.items() for name in file.keys()}  # noqa: SIM118
    if absent := [n for n, file in listed.items() if where.get(n) != folder / file]:
        raise ValueError(f"{index} places {some(absent)} in files that do not hold them")
    return files, where


def _open_file(path: Path) -> safe_open:
    try:
        return safe_open(str(path), framework="pt")
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist, but the index lists it") from None
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path} is truncated or damaged ({e}); fetch it again") from e
