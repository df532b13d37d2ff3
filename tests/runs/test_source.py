"""The code of a run stands beside its run.json, and can be put together again."""

import subprocess
from pathlib import Path

import pytest

from runs.folder import session_of
from runs.run import CODE, Run, write_json
from runs.source import FILE_BYTES, keep_source, rebuild


@pytest.fixture
def repository(tmp_path) -> Path:
    """A project with a commit, a changed file, a deleted one, a binary one, and new files."""
    root = tmp_path / "project"
    (root / "model").mkdir(parents=True)
    files = {".gitignore": "out/\n*.log\n", "train.py": "a = 1\n", "gone.py": "b = 2\n", "model/net.py": "c = 3\n"}
    for name, text in files.items():
        (root / name).write_text(text)
    (root / "weights.bin").write_bytes(bytes(range(256)))
    run_git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*run_git, *arguments], check=True)
    (root / "train.py").write_text("a = 10\n\n")
    (root / "gone.py").unlink()
    (root / "weights.bin").write_bytes(bytes(reversed(range(256))))
    (root / "model/new one.py").write_text("d = 4\n")
    (root / "noise.log").write_text("ignored\n")
    return root


def make_run(root: Path, **facts) -> Run:
    """The run folder of a session, with the facts that it writes down."""
    path = root / "out/run"
    path.mkdir(parents=True, exist_ok=True)
    commit = subprocess.check_output(["git", "-C", str(root), "rev-parse", "HEAD"], text=True).strip()
    write_json(path / "run.json", {"git_commit": commit, "state": "finished", **facts})
    Run(path).update(code=keep_source(path, root))
    return Run(path)


def contents(root: Path) -> dict[str, bytes]:
    left_out = (".git", "out", "noise.log")
    paths = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] not in left_out]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_run_with_uncommitted_changes_is_rebuilt_from_its_folder(repository, tmp_path):
    run = make_run(repository)
    wanted = contents(repository)
    subprocess.run(["git", "-C", str(repository), "checkout", "-q", "--", "."], check=True)
    (repository / "model/new one.py").unlink()
    target = repository / "out/again"  # below a repository, whose files the patch must not touch
    assert rebuild(run, target, repository) == []
    assert contents(target) == wanted and (repository / "train.py").read_text() == "a = 1\n"
    assert "torch==" in (run.path / "code/packages.txt").read_text()
    with pytest.raises(ValueError, match="exists already"):
        rebuild(run, target, repository)


def test_records_that_other_runs_fill_meanwhile_are_no_code(repository, tmp_path):
    before = keep_source(tmp_path / "run", repository)
    for name in ("EXPERIMENT_1_4_8.md", "curves/EXPERIMENT_1_4_8.png"):
        (repository / "experiment" / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / "experiment" / name).write_text("filled\n")
    assert keep_source(tmp_path / "run", repository) == before
    status = ["git", "-C", str(repository), "status", "--porcelain", *CODE]
    assert "experiment" not in subprocess.check_output(status, text=True)
    (repository / "experiment/new_code.py").write_text("e = 5\n")
    assert "experiment/new_code.py" in keep_source(tmp_path / "run", repository)["untracked"]
    assert "experiment" in subprocess.check_output(status, text=True)


def test_what_is_left_out_is_told(repository, tmp_path):
    (repository / "data.json").write_text("x" * (FILE_BYTES + 1))
    (repository / ".env").write_text("KEY=do-not-tell\n")
    (repository / "picture.png").write_bytes(b"\x89PNG")
    run = make_run(repository)
    told = rebuild(run, tmp_path / "again", repository)
    assert sorted(sentence.split(" was left out: ")[0] for sentence in told) == [".env", "data.json", "picture.png"]
    assert any("too large" in sentence for sentence in told)
    kept = b"".join(path.read_bytes() for path in run.path.rglob("*") if path.is_file())
    assert b"do-not-tell" not in kept


def test_each_session_with_other_code_has_a_folder_of_its_own(repository):
    first = make_run(repository)
    sessions = [session_of(first)]
    same = make_run(repository, earlier_sessions=sessions)
    assert same.info["code"]["folder"] == "code"
    (repository / "train.py").write_text("a = 11\n")
    other = make_run(repository, earlier_sessions=sessions)
    assert other.info["code"]["folder"] == "code_2"
    assert b"+a = 10" in (other.path / "code/uncommitted.patch").read_bytes()
    assert b"+a = 11" in (other.path / "code_2/uncommitted.patch").read_bytes()


def test_a_run_without_its_code_or_its_commit_is_refused(repository, tmp_path):
    run = make_run(repository)
    run.update(git_commit="0" * 40)
    with pytest.raises(ValueError, match="is not in this repository: fetch it"):
        rebuild(run, tmp_path / "again", repository)
    run.update(code=None)
    with pytest.raises(ValueError, match="kept no code"):
        rebuild(run, tmp_path / "again", repository)
