"""A power cut: what the file system had not written when the daemon ended is gone, and no 250 is broken.

The spool and its Maildirs are on an ext4 of their own in an image file. At a cut the daemon is killed and the
image is copied before the kernel writes anything more to it (the loop device counts its writes), so that the
copy lacks all that was never synced. The next life is on the copy, whose journal the mount replays. What a
drive's own cache might lose in spite of a flush is not modelled.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.durability.ledger import Ledger
from tests.durability.load import LOCAL, Clients, sink
from tests.durability.node import Node, find_strace, run_dry

_ROUNDS_TOGETHER = 10
#: Nothing is written by the kernel on its own within a round, nor as a favour to programs that do not sync.
_OPTIONS = "loop,noatime,commit=300,noauto_da_alloc"
_CALLS = ("fdatasync", "fsync", "rename", "pwrite64", "unlink")


class ImageDisk:
    """An ext4 in a file, mounted at ``place``."""

    def __init__(self, image: Path, place: Path) -> None:
        self._image = image
        self._place = place
        with image.open("wb") as file:
            file.truncate(1 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)
        place.mkdir(parents=True)

    def mount(self) -> None:
        mounting = ["mount", "-o", _OPTIONS, str(self._image), str(self._place)]
        subprocess.run(mounting, check=True, capture_output=True, text=True)

    def cut(self) -> None:
        """Lose what is not on the disk: go on with what the image holds at this moment."""
        copy = self._image.with_suffix(".copy")
        for _ in range(10):
            before = self._writes()
            subprocess.run(["cp", "--sparse=always", str(self._image), str(copy)], check=True)
            if self._writes() == before:
                break
        else:
            raise AssertionError("the image never rests")
        self.unmount()
        os.replace(copy, self._image)
        self.mount()

    def unmount(self) -> None:
        for _ in range(50):
            if not subprocess.run(["umount", str(self._place)], capture_output=True, check=False).returncode:
                return
            time.sleep(0.1)
        subprocess.run(["umount", "-l", str(self._place)], check=True)

    def _writes(self) -> tuple[str, ...]:
        """Writes that the device has done, and what is in flight."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            device, place, *_ = line.split()
            if place == str(self._place):
                numbers = Path(f"/sys/block/{Path(device).name}/stat").read_text().split()
                return numbers[4], numbers[8]
        raise AssertionError("the image is not mounted")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[ImageDisk]:
    try:
        made = ImageDisk(tmp_path / "disk.img", tmp_path / "node" / "spool")
        made.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"an image can't be made or mounted here: {error}")
    yield made
    made.unmount()


def _run_and_end(node: Node, clients: Clients, moments: random.Random) -> str:
    """One life under load until its end by SIGKILL; says what kind of end it was."""
    kind = moments.choice(("moment", "moment", "start", *_CALLS))
    if kind == "start":
        node.launch()
        time.sleep(moments.uniform(0.0, node.start_seconds * 1.1))
    elif kind == "moment":
        node.start()
        clients.aim(node.daemon.port)
        time.sleep(moments.choice((0.1, 0.5, 1.5)) * moments.random())
    else:
        nth = moments.randint(3, 40)
        before = (find_strace(), "-D", "-f", "-qq", "-o", os.devnull, "-e", f"trace={kind}")
        process = node.launch((*before, "-e", f"inject={kind}:signal=SIGKILL:when={nth}"))
        if node.is_serving(process):
            clients.aim(node.daemon.port)
            node.is_dead(process, 3.0)
    node.kill()
    clients.rest()
    return kind


@pytest.mark.campaign
def test_a_power_cut_at_any_moment_loses_no_message_that_got_a_250(
    tmp_path: Path, disk: ImageDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    rounds = int(os.environ.get("ELEMTA_CUTS", "50"))
    seed = int(os.environ.get("ELEMTA_SEED", "0")) or random.randrange(1 << 32)
    moments = random.Random(seed)
    ledger = Ledger()
    begun = time.monotonic()
    kinds: dict[str, int] = {}
    with sink(ledger) as hop, Clients(ledger) as clients:
        node = Node(tmp_path / "node", ledger, hop.port)
        try:
            for number in range(1, rounds + 1):
                kind = _run_and_end(node, clients, moments)
                kinds[kind] = kinds.get(kind, 0) + 1
                disk.cut()
                if number % _ROUNDS_TOGETHER == 0 or number == rounds:
                    node.start()
                    run_dry(node, clients, take=False)
                    node.kill()
                    disk.cut()  # what is delivered and out of the queue has to be on the disk as well
            # Taken only now: what a reader removed would come back at the next cut and look like a duplicate.
            ledger.take_mail(node.mail, LOCAL)
            ledger.close()
            ledger.judge()
        finally:
            node.daemon.kill()
            with capsys.disabled():
                print(f"\npower cuts (seed {seed})")
                print(
                    ledger.report(
                        cuts=rounds,
                        at=", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())),
                        starts=node.starts,
                        seconds=round(time.monotonic() - begun, 1),
                    )
                )
    assert node.faults == []
    assert clients.trouble == []
