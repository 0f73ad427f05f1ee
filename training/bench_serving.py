"""How an HTTP server answers 1 to 64 clients: latency, throughput and refusals, on loopback.

    python -m training.bench_serving --recipe training/recipes/bench_serving.yaml

Random weights. A server process (`higr serve`) is started for each way of serving; clients ask in a closed loop, each
of them for its own users, one new event a request. `history sent` sends all events with every request, `user kept`
sends the new one alone; both ask the same, and their slates are compared. A row a way of serving goes to
`<results>/serving.jsonl`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from higr_hf import HiGRTokenizer, save_checkpoint
from higr_hf.evaluation import append_rows, make_row
from higr_hf.speed.load import Load, Refused, closed_loop
from higr_hf.speed.systems import Bench, Shape

from ._args import check_output, mapping, numbers, parse_recipe, parsed, run

_SHAPE = {entry.name for entry in dataclasses.fields(Shape)}
PAUSE = 0.1
"""Seconds that a refused client waits."""


@dataclass
class ServingArguments:
    """What is measured."""

    _argument_group_name = "serving"

    shape: str = field(default="{history: 200}", metadata={"help": "As in bench_speed, as YAML or JSON."})
    slate_mode: str = field(default="sequential", metadata={"help": "How slots are planned."})
    clients: str = field(default="[1, 4, 16, 64]", metadata={"help": "Numbers of clients."})
    servers: str = field(
        default="{batched: []}",
        metadata={"help": "Name -> arguments of `higr serve`, such as '{one by one: [--max-batch-size, 1]}'."},
    )
    workloads: str = field(default="[history sent, user kept]", metadata={"help": "Which of the two."})
    users: int = field(default=64, metadata={"help": "Users whom the clients share out among themselves."})
    seconds: float = field(default=4.0, metadata={"help": "Of every number of clients."})
    threads: int = field(default=1, metadata={"help": "Threads of torch in the server."})
    seed: int = field(default=0, metadata={"help": "Of weights, catalogue and events."})
    results: str = field(default="results", metadata={"help": "Directory of the result rows."})


class Client:
    """Asks for the slates of some users in turn, over one connection.

    Args:
        address: of the server.
        users: their names.
        kept: whether the server keeps their events, or is sent all of them each time.
        length: events of each user before the first request.
        num_items: size of the catalogue.
        seed: of the events; a user's are the same in every run.
    """

    def __init__(self, address: str, users: list[str], kept: bool, length: int, num_items: int, seed: int) -> None:
        where = urllib.parse.urlsplit(address)
        self.connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
        self.users, self.kept, self.num_items = users, kept, num_items
        self.random = {user: random.Random(f"{seed} {user.rsplit('/', 1)[-1]}") for user in users}
        self.events = {user: [self._event(user) for _ in range(length)] for user in users}
        self.untold: dict[str, list[str]] = {user: [] for user in users}
        self.slates: dict[tuple[str, int], list[str]] = {}
        self.turn = 0
        for user in users:  # not timed: what a user did before the measurement
            self._ask("POST", "/recommend", {"history": self.events[user], **({"user": user} if kept else {})})

    def __call__(self) -> None:
        """One request: a new event, and the slate after it."""
        user = self.users[self.turn % len(self.users)]
        self.turn += 1
        event = self._event(user)
        self.events[user].append(event)
        self.untold[user].append(event)  # a request that is refused adds no event: the next one tells them all
        body = {"user": user, "events": self.untold[user]} if self.kept else {"history": self.events[user]}
        slate = self._ask("POST", "/recommend", body)["slate"]
        self.untold[user] = []
        self.slates[user.rsplit("/", 1)[-1], len(self.events[user])] = [place["item_id"] for place in slate]

    def _event(self, user: str) -> str:
        return f"i{self.random[user].randrange(self.num_items)}"

    def _ask(self, method: str, path: str, body: dict) -> dict:
        self.connection.request(method, path, body=json.dumps(body))
        answer = self.connection.getresponse()
        content = json.loads(answer.read())
        if answer.status == 503:
            raise Refused
        if answer.status != 200:
            raise RuntimeError(f"{method} {path} was answered {answer.status}: {content}")
        return content


def main(argv: list[str] | None = None) -> list[dict]:
    """Measure; returns the rows written."""
    (options,) = parse_recipe((ServingArguments,), argv, description=__doc__ or "")
    shape = Shape(**mapping("shape", options.shape, _SHAPE))
    clients = [int(count) for count in numbers("clients", options.clients)]
    check_output(options.results)
    torch.set_num_threads(options.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = _checkpoint(shape, options.seed, folder)
        for name, arguments in mapping("servers", options.servers).items():
            slates: dict[str, dict] = {}
            with _server(place, shape, arguments, options) as address:
                for workload in parsed(options.workloads):
                    began = time.perf_counter()
                    metrics, slates[workload] = _measure(address, shape, clients, workload, options)
                    row = make_row(
                        study="serving",
                        dataset=f"{shape}, {options.slate_mode}",
                        system="higr",
                        variant=f"{name}, {workload}",
                        metrics={**metrics, **_compared(slates, workload)},
                        seed=options.seed,
                        seconds=time.perf_counter() - began,
                    )
                    append_rows([row], options.results)
                    rows.append(row)
    return rows


def _checkpoint(shape: Shape, seed: int, folder: str) -> str:
    """A directory with a model of random weights and its tokenizer."""
    bench = Bench(shape, seed=seed)
    item_ids = [f"i{number}" for number in range(shape.num_items)]
    tokenizer = HiGRTokenizer.from_codes(item_ids, bench.codes.numpy(), bench.config.codebook_sizes)
    return str(save_checkpoint(f"{folder}/model", bench.model("higr"), tokenizer))


@contextlib.contextmanager
def _server(place: str, shape: Shape, arguments: list, options: ServingArguments) -> Iterator[str]:
    """A server process; its address."""
    settings = ["--slate-size", shape.slate_size, "--beams", shape.num_beams, "--mode", options.slate_mode]
    command = [sys.executable, "-m", "higr_hf.cli", "serve", place, "--port", 0, *settings, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        said = server.stdout.readline()
        if not said.startswith("serving on "):
            raise RuntimeError(f"The server did not start: {' '.join(server.args)}")
        yield said.removeprefix("serving on ").strip()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        server.stdout.close()


def _measure(
    address: str, shape: Shape, counts: list[int], workload: str, options: ServingArguments
) -> tuple[dict[str, float], dict]:
    """Metrics by number of clients, and every slate by user and number of events."""
    metrics: dict[str, float] = {}
    slates: dict = {}
    for count in counts:
        names = [f"{count}/{user}" for user in range(max(options.users, count))]
        clients = [
            Client(address, names[number::count], workload == "user kept", shape.history // 2, shape.num_items,
                   options.seed)
            for number in range(count)
        ]  # fmt: skip
        before = _stats(address)
        load = closed_loop(clients, options.seconds, PAUSE)
        after = _stats(address)
        for client in clients:
            slates |= {(count, *asked): slate for asked, slate in client.slates.items()}
            client.connection.close()
        metrics |= _metrics(load, count, before, after)
        shown = ", ".join(f"{name} {value:.1f}" for name, value in metrics.items() if name.endswith(f"@{count}"))
        print(f"{workload}, {count} clients: {shown}", flush=True)
    return metrics, slates


def _metrics(load: Load, count: int, before: dict, after: dict) -> dict[str, float]:
    batches = after["batches"] - before["batches"]
    return {
        f"p50_ms@{count}": 1e3 * load.percentile(50),
        f"p99_ms@{count}": 1e3 * load.percentile(99),
        f"slates_per_second@{count}": load.per_second,
        f"refused@{count}": load.refused,
        f"batch@{count}": (after["answered"] - before["answered"]) / max(batches, 1),
    }


def _compared(slates: dict[str, dict], workload: str) -> dict[str, float]:
    """How many of the slates asked for before, under another workload, came out the same."""
    others = [other for name, other in slates.items() if name != workload]
    if not others:
        return {}
    both = [asked for asked in others[0] if asked in slates[workload]]
    same = sum(others[0][asked] == slates[workload][asked] for asked in both)
    return {"compared": len(both), "same": same}


def _stats(address: str) -> dict:
    where = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=120)
    connection.request("GET", "/stats")
    content = json.loads(connection.getresponse().read())
    connection.close()
    return content


if __name__ == "__main__":
    run(main)
