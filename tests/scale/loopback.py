"""A Ray cluster that nobody outside this machine can reach.

Ray replaces 127.0.0.1 by the machine's own address, and then listens on every interface. It asks one function
for that address; here it answers 127.0.0.1. As a program, this is the label command with that in place; its
first argument names a file for the socket of the simulated machine that it joined the cluster by.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def stay_on_loopback() -> None:
    """Have Ray in this process, and what it starts, use 127.0.0.1 alone."""
    from ray._private import services

    services.get_node_ip_address = lambda *_, **__: "127.0.0.1"


def note_the_machine(file: Path) -> None:
    """Write down which simulated machine this process joins, as soon as it has."""
    import ray

    join = ray.init

    def init(*given: Any, **named: Any) -> Any:
        joined = join(*given, **named)
        file.write_text(ray._private.worker.global_worker.node.raylet_socket_name)
        return joined

    ray.init = init


if __name__ == "__main__":
    from cdul_fast.cli import run_main
    from cdul_fast.label import main

    stay_on_loopback()
    note_the_machine(Path(sys.argv.pop(1)))
    sys.exit(run_main(main))
