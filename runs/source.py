"""The code that a run ran with, beside its run.json: what was not committed, small new files, every package's version.

    RUN/code/uncommitted.patch       git diff of the tracked files against the commit in run.json
    RUN/code/untracked/...           new files that git neither tracks nor ignores
    RUN/code/packages.txt            as `pip freeze` writes them

A session with other code than the one before has a folder of its own: code_2, code_3. What is left out for its size or
its kind is named in run.json. `rebuild` puts the code together again.
"""

import fnmatch
import hashlib
import os
import shutil
import subprocess
from importlib import metadata
from itertools import count
from pathlib import Path

from .run import CODE, ROOT, Run

PATCH_BYTES = 5_000_000  # the largest patch
FILE_BYTES, ALL_BYTES, FILES = 1_000_000, 10_000_000, 200  # of new files: the largest, all together, how many
KINDS = (
    ".py", ".sh", ".md", ".txt", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".csv", ".tsv", ".cu",
    ".cpp", ".h",
)  # fmt: skip
PRIVATE = (".env*", "*secret*", "*token*.json", "*token*.txt", "*credential*", "*password*", "*api_key*")


def git_bytes(*arguments: str, cwd: Path | None = None) -> bytes | None:
    """The output of a git command as it is; None where there is no git, no repository or no such commit."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, timeout=60, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def packages() -> str:
    """Every installed package with its version, one a line."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items(), key=lambda item: item[0].lower()))


def new_files(root: Path, run_dir: Path) -> list[str]:
    """New files below the project's root that git neither tracks nor ignores, without those of the run itself."""
    listed = git_bytes("ls-files", "-z", "--others", "--exclude-standard", *CODE, cwd=root) or b""
    names = [name for name in listed.decode(errors="replace").split("\0") if name]
    return [name for name in names if not (root / name).resolve().is_relative_to(run_dir.resolve())]


def chosen(names: list[str], root: Path) -> tuple[list[str], list[dict]]:
    """(files to copy, {path, why} of those that are left out)."""
    kept, left, total = [], [], 0
    for name in names:
        path = root / name
        size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
        if size is None or not os.access(path, os.R_OK):
            why = "no plain file that can be read"
        elif any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in PRIVATE):
            why = "its name is that of a private file"
        elif path.suffix not in KINDS:
            why = "no text of a known kind"
        elif size > FILE_BYTES or total + size > ALL_BYTES or len(kept) == FILES:
            why = f"too large: {size} bytes" if size > FILE_BYTES else "the new files are too many"
        else:
            why, total = None, total + size
        if why:
            left.append({"path": name, "why": why})
        else:
            kept.append(name)
    return kept, left


def keep_source(run_dir: str | Path, root: Path | None = None) -> dict:
    """Write the code of a session into its run folder; returns the facts for run.json."""
    run_dir, root = Path(run_dir), root or ROOT
    patch = git_bytes("diff", "HEAD", "--binary", *CODE, cwd=root)
    kept, left = chosen(new_files(root, run_dir), root)
    contents = {"packages.txt": packages().encode()}
    if patch is None:
        left.insert(0, {"path": "uncommitted.patch", "why": "no git repository with a commit"})
    elif len(patch) > PATCH_BYTES:
        left.insert(0, {"path": "uncommitted.patch", "why": f"too large: {len(patch)} bytes"})
    elif patch:
        contents["uncommitted.patch"] = patch
    for name in kept:
        try:
            contents[f"untracked/{name}"] = (root / name).read_bytes()
        except OSError as problem:  # it has gone since it was listed
            left.append({"path": name, "why": f"cannot be read ({problem.strerror})"})
    digest = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()
    folder = place_for(run_dir, digest)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    has_patch = "uncommitted.patch" in contents
    kept = [name for name in kept if f"untracked/{name}" in contents]
    return {"folder": folder.name, "patch": has_patch, "untracked": kept, "left_out": left[:100], "sha256": digest}


def place_for(run_dir: Path, digest: str) -> Path:
    """code, or the first code_N that is not another session's code."""
    known = Run(run_dir).info
    sessions = [*known.get("earlier_sessions", []), known]
    used = {s["code"]["folder"]: s["code"]["sha256"] for s in sessions if isinstance(s.get("code"), dict)}
    names = ("code" if n == 1 else f"code_{n}" for n in count(1))
    folder = run_dir / next(name for name in names if used.get(name, digest) == digest)
    if folder.exists():
        shutil.rmtree(folder)  # of a session that ended before it had written down what it has
    return folder


def rebuild(run: Run, target: str | Path, root: Path) -> list[str]:
    """Put the code of a run's last session into a new folder: its commit, its patch, its new files.

    Returns:
        What is missing, one sentence each.
    Raises:
        ValueError: the folder exists, the run wrote down no code, or its commit is not in this repository.
    """
    target, code = Path(target), run.info.get("code")
    if target.exists():
        raise ValueError(f"{target} exists already: give a folder that does not")
    if not isinstance(code, dict):
        raise ValueError(f"{run.path} kept no code: it is older than that, or its run.json is damaged")
    commit = run.info.get("git_commit")
    archive = commit and git_bytes("archive", "--format=tar", commit, cwd=root)
    if not archive:
        raise ValueError(f"commit {commit} of {run.path} is not in this repository: fetch it, then repeat")
    target.mkdir(parents=True)
    subprocess.run(["tar", "-x", "-C", str(target)], input=archive, check=True)
    folder = run.path / code["folder"]
    if code["patch"]:
        patch = (folder / "uncommitted.patch").resolve()
        # Below another repository git would apply a patch to that one.
        alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(target.resolve().parent)}
        apply = ["git", "apply", "--whitespace=nowarn", str(patch)]
        done = subprocess.run(apply, cwd=target, env=alone, capture_output=True, encoding="utf-8")
        if done.returncode:
            raise ValueError(f"{patch} does not fit commit {commit}: {done.stderr.strip().splitlines()[-1]}")
    if (folder / "untracked").exists():
        shutil.copytree(folder / "untracked", target, dirs_exist_ok=True)
    return [f"{left['path']} was left out: {left['why']}" for left in code["left_out"]]
