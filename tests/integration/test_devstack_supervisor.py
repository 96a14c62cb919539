"""The supervisor with small stand-ins for the parts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from textwrap import dedent

import pytest

from devstack.console import Console
from devstack.processes import Ledger, Process, start_time
from devstack.supervisor import Interrupts, Part, PartFailed, StopRequested, Supervisor
from tests.services.waiting import wait_until

# A part that writes its name to the file `order` when it is asked to stop.
OBEDIENT = """
    import pathlib, signal, sys
    name = sys.argv[1]
    def stop(*_):
        with open("order", "a") as order:
            order.write(name + " ")
        print("bye", flush=True)
        sys.exit()
    signal.signal(signal.SIGTERM, stop)
    print("hello", flush=True)
    pathlib.Path(name).touch()
    while True:
        signal.pause()
"""
STUBBORN = """
    import pathlib, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path(sys.argv[1]).touch()
    while True:
        signal.pause()
"""
# A part that starts a helper in its own group, writes down its pid, and leaves it behind when it
# stops. The helper would note a SIGTERM.
WITH_HELPER = """
    import pathlib, signal, subprocess, sys
    helper = "import pathlib, signal\\n" \\
        "signal.signal(15, lambda *_: pathlib.Path('helper-was-signalled').touch())\\n" \\
        "pathlib.Path('helper-is-ready').touch()\\n" \\
        "while True: signal.pause()"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    process = subprocess.Popen([sys.executable, "-c", helper])
    while not pathlib.Path("helper-is-ready").exists():
        pass
    pathlib.Path(sys.argv[1]).write_text(str(process.pid))
    while True:
        signal.pause()
"""


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Scene:
    """A supervisor in an empty folder, with its output."""

    def __init__(self, folder: Path, interrupts: Interrupts) -> None:
        self.folder = folder
        self.out = StringIO()
        self.ledger = Ledger(folder / "ledger.json")
        self.supervisor = Supervisor(Console(self.out, ["one", "two"]), self.ledger, interrupts)

    def part(self, name: str, script: str, **limits: float) -> Part:
        """Return a part that is ready when the file of its name exists."""
        command = (sys.executable, "-c", dedent(script), name)
        return Part(name, command, os.environ, (self.folder / name).exists, **limits)


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    """Handle signals as in a terminal, even if the tests are a background job that ignores some."""
    ignored = [number for number in STOPS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    with Interrupts() as interrupts:
        yield interrupts
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupts: Interrupts
) -> Iterator[Scene]:
    monkeypatch.chdir(tmp_path)
    scene = Scene(tmp_path, interrupts)
    yield scene
    scene.supervisor.stop()


def is_running(pid: int) -> bool:
    return start_time(pid) is not None


def test_parts_are_started_and_stopped_one_after_the_other(scene: Scene) -> None:
    """The last part started stops first; log lines name their part; the ledger ends empty."""
    scene.supervisor.start(scene.part("one", OBEDIENT))
    scene.supervisor.start(scene.part("two", OBEDIENT))
    noted = scene.ledger.left_behind()

    assert scene.supervisor.stop()

    assert (scene.folder / "order").read_text().split() == ["two", "one"]
    assert [process.name for process in noted] == ["one", "two"]
    assert not any(process.alive for process in noted)
    assert scene.ledger.left_behind() == []
    lines = scene.out.getvalue().splitlines()
    for line in (
        "one   | hello",
        "two   | hello",
        "one   | bye",
        "two   | bye",
        "stack | Stopping two ...",
    ):
        assert line in lines


def test_a_part_that_does_not_stop_is_killed(scene: Scene) -> None:
    """A part that does not stop within its grace is killed, and `stop` returns False."""
    scene.supervisor.start(scene.part("one", STUBBORN, grace=0.1))

    assert not scene.supervisor.stop()

    assert "Killing one, after waiting" in scene.out.getvalue()


def test_whoever_insists_does_not_wait(scene: Scene, interrupts: Interrupts) -> None:
    """A second request to stop kills the parts without a wait."""
    scene.supervisor.start(scene.part("one", STUBBORN, grace=60))
    interrupts.insisted = True

    assert not scene.supervisor.stop()

    assert "Killing one, as you insist." in scene.out.getvalue()


def test_only_the_main_process_is_asked(scene: Scene) -> None:
    """Only the main process of a part is asked to stop; helpers left behind are killed."""
    scene.supervisor.start(scene.part("one", WITH_HELPER))
    wait_until((scene.folder / "one").read_text)
    helper = int((scene.folder / "one").read_text())
    assert is_running(helper)

    assert scene.supervisor.stop()

    wait_until(lambda: not is_running(helper))
    assert not (scene.folder / "helper-was-signalled").exists()


def test_a_part_that_ends_by_itself(scene: Scene) -> None:
    """A part that ends by itself is an error with name and exit code, after its last output."""
    scene.supervisor.start(scene.part("one", OBEDIENT))

    with pytest.raises(PartFailed, match=r"two ended by itself \(exit code 3\)"):
        scene.supervisor.start(scene.part("two", "import sys; print('no such table'); sys.exit(3)"))

    assert "two   | no such table" in scene.out.getvalue()


def test_a_part_that_is_killed(scene: Scene) -> None:
    """A part that is killed while the stack runs is an error with the signal's name."""
    scene.supervisor.start(scene.part("one", OBEDIENT))
    (process,) = scene.ledger.left_behind()
    process.kill()

    with pytest.raises(PartFailed, match="one was ended by SIGKILL"):
        scene.supervisor.watch()


def test_a_part_that_never_gets_ready(scene: Scene) -> None:
    """A part that does not get ready in time is an error."""
    with pytest.raises(PartFailed, match="one did not get ready within 0 s"):
        scene.supervisor.start(scene.part("one", "import signal; signal.pause()", start_limit=0.1))


@pytest.mark.parametrize("number", STOPS)
def test_a_request_to_stop(scene: Scene, interrupts: Interrupts, number: signal.Signals) -> None:
    """A signal stops the running stack, and several at once count as one request."""
    scene.supervisor.start(scene.part("one", OBEDIENT))
    for _ in range(3):
        signal.raise_signal(number)

    with pytest.raises(StopRequested):
        scene.supervisor.watch()
    assert not interrupts.insisted


def test_what_an_interrupted_run_left_behind_is_stopped(scene: Scene) -> None:
    """The next run finds the processes of an interrupted run in the ledger and stops them."""
    leftover = subprocess.Popen(
        [sys.executable, "-c", dedent(OBEDIENT), "one"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    wait_until((scene.folder / "one").exists)
    Ledger(scene.folder / "ledger.json").add(
        Process("one", leftover.pid, start_time(leftover.pid) or "", grace=10)
    )

    scene.supervisor.recover()

    assert leftover.wait() == 0
    assert "An interrupted run left one behind" in scene.out.getvalue()
    assert scene.ledger.left_behind() == []


def test_a_process_that_is_not_ours_is_left_alone(scene: Scene) -> None:
    """A process with a pid of the ledger but another start time is left alone."""
    with subprocess.Popen(
        [sys.executable, "-c", dedent(OBEDIENT), "one"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as stranger:
        wait_until((scene.folder / "one").exists)
        Ledger(scene.folder / "ledger.json").add(Process("one", stranger.pid, "long ago", grace=10))

        scene.supervisor.recover()

        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="only Linux tells a child that its parent died; elsewhere the ledger does",
)
def test_a_killed_runner_takes_its_parts_along(scene: Scene) -> None:
    """When the runner is killed, the kernel asks its parts to stop."""
    runner = """
        import os, sys
        from pathlib import Path
        from devstack.console import Console
        from devstack.processes import Ledger
        from devstack.supervisor import Interrupts, Part, Supervisor
        command = sys.executable, "-c", sys.argv[1], "one"
        part = Part("one", command, os.environ, Path("one").exists)
        ledger = Ledger(Path("ledger.json"))
        supervisor = Supervisor(Console(sys.stdout, ["one"]), ledger, Interrupts())
        supervisor.start(part)
        supervisor.watch()
    """
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", dedent(runner), dedent(OBEDIENT)],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.DEVNULL,
    )
    (part,) = wait_until(scene.ledger.left_behind, timeout=30)
    wait_until((scene.folder / "one").exists, timeout=30)

    process.kill()
    process.wait()

    wait_until(lambda: not part.alive)
    assert (scene.folder / "order").read_text() == "one "
