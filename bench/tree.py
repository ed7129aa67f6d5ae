"""The code of another revision, in a folder of its own; the repository itself is not touched."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from .result import NoBaseline


@dataclass(frozen=True)
class Tree:
    """A folder of code to be measured, and the interpreter that runs it."""

    root: Path
    revision: str
    python: str

    def path(self) -> list[str]:
        """What stands before the interpreter's own packages."""
        source = self.root / "src"
        return [str(source), str(self.root)] if source.is_dir() else [str(self.root)]


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    except FileNotFoundError as e:
        raise ValueError("a gate against a revision needs git; install it, or compare two result "
                         "files with: expertile bench compare BASE HEAD") from e
    if done.returncode:
        raise NoBaseline(f"git {' '.join(words)} failed in {root}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def top(start: Path) -> Path:
    """The repository that holds a folder."""
    try:
        return Path(_git(start, "rev-parse", "--show-toplevel"))
    except NoBaseline as e:
        raise NoBaseline(f"{start} is in no git repository; run the gate in one") from e


def commit(root: Path, revision: str) -> str:
    """The full name of a revision; NoBaseline when this clone does not have it."""
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except NoBaseline as e:
        raise NoBaseline(
            f"revision {revision!r} is not in this clone; in CI fetch it first (actions/checkout "
            "with fetch-depth: 0, or git fetch origin REV)") from e


def working(root: Path, python: str) -> Tree:
    """The working tree as it stands."""
    dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    return Tree(root, _git(root, "rev-parse", "HEAD") + ("+changes" if dirty else ""), python)


@contextmanager
def checked_out(root: Path, revision: str, python: str) -> Iterator[Tree]:
    """A revision's files. `git archive` and not `git worktree`: a killed run leaves no entry in
    the repository, and a read-only checkout will do. Submodules are not in it."""
    name = commit(root, revision)
    with TemporaryDirectory(prefix="expertile-base-") as folder:
        packed = Path(folder) / "tree.tar"
        _git(root, "archive", "--format=tar", f"--output={packed}", name)
        where = Path(folder) / "tree"
        with tarfile.open(packed) as archive:
            if hasattr(tarfile, "data_filter"):          # Python 3.11.4; our own git wrote it
                archive.extractall(where, filter="data")
            else:
                archive.extractall(where)
        packed.unlink()
        yield Tree(where, name, python)
