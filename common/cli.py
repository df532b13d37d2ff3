"""What all command lines share: how they end (`run_command`), how they refuse (`CommandParser`), types of arguments."""

import argparse
import errno
import os
import sys
from collections.abc import Callable


def run_command(main: Callable[[], int | None], *refusals: type[Exception]) -> None:
    """Run a command; exit with one sentence for ValueError, OSError and `refusals`, with 130 for Ctrl-C.

    A character that the terminal cannot show is printed as "?". When the reader of a pipe has gone, as `head` does, the
    command ends with 141 and says nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains once more at its end
        sys.exit(141)
    except (ValueError, OSError, *refusals) as problem:
        sys.exit(f"error: {sentence(problem)}")
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nstopped", file=sys.stderr)
        sys.exit(130)
    if code:
        sys.exit(code)


def sentence(problem: Exception) -> str:
    """The words of an error; those of the operating system with the path first and with what to do."""
    if not isinstance(problem, OSError) or not problem.filename or not problem.strerror:
        return str(problem)
    cures = {
        errno.EACCES: "give permission, or name another path", errno.EROFS: "name a path on another disk",
        errno.ENOSPC: "make room, or name a path on another disk", errno.ENOENT: "make it, or name another path",
    }  # fmt: skip
    paths = " to ".join(os.fsdecode(path) for path in (problem.filename, problem.filename2) if path is not None)
    return f"{paths}: {problem.strerror}; {cures.get(problem.errno, 'name another path')}"


class CommandParser(argparse.ArgumentParser):
    """Refuses in one sentence, by a ValueError, without the page of usage. Shows its description as it is written.

    A flag is not abbreviated: a typo such as --limi is refused, and not taken for another flag.
    """

    def __init__(self, **options):
        own = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**own | options)

    def error(self, message: str):
        raise ValueError(f"{self.prog.strip()}: {message} (--help lists the flags)")


def positive_int(text: str) -> int:
    """An argument that is a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def choose_device(name: str | None):
    """The torch device of `--device`; without a name cuda where there is a GPU, else the CPU.

    Raises:
        ValueError: the device does not exist on this machine.
    """
    import torch  # not all command lines need it

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name!r} is not one that a run can use: give cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name!r} is not there, PyTorch sees {torch.cuda.device_count()} GPUs: give cpu")
    return device
