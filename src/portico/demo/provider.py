"""The demo cluster's cloud: boots and ends elastic nodes, as Slurm's resume and suspend programs ask through a FIFO.

python3 -I provider.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from portico.demo.cluster import DemoCluster
from portico.errors import PorticoError


def serve(folder: Path) -> None:
    """Do what is asked for, one after the other; both words may come for a node that is so already."""
    cluster = DemoCluster(folder)
    path = folder / "run/elastic"
    with open(path, "r+b", buffering=0) as asked:  # r+: it never ends, whoever has closed it
        pending = b""
        while True:
            pending += asked.read(4096)
            *lines, pending = pending.split(b"\n")
            for line in lines:
                word, _, node = line.decode(errors="replace").partition(" ")
                if node not in cluster.elastic:
                    continue
                try:
                    if word == "resume" and not cluster.is_node_running(node):
                        cluster.start_node(node)
                    elif word == "suspend":
                        cluster.kill_node(node)
                except (PorticoError, OSError) as error:
                    print(f"{word} {node}: {error}", flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
