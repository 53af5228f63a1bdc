"""The server under load: `python -m benchmarks.scale_serve` writes benchmarks/results/scale-serve.json.

On this machine, on CPU replicas with the preset `tiny`, with Locust (`pip install locust`) as the load generator, on the
same cores:
latency against offered load, from a tenth of the capacity to three times; minutes at three times the capacity with the memory
of every process of the server; one replica killed under load; and malformed bodies by the thousand, by schemathesis.
tests/serving/test_server.py has short forms.
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import httpx2
import torch

from benchmarks.processes import mark, marked
from dllm_kernels.utils.machine import Machine

RESULTS = Path(__file__).parent / "results"
QUEUE, DEADLINE_S, BATCHES, REPLICAS, WAIT_MS, STEPS = 32, 20, "1,4,16", 1, 5, 10


class Server:
    """`dllm-kernels serve` as a process."""

    def __init__(self, replicas: int):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url, self.mark = f"http://127.0.0.1:{port}", mark()
        options = {"port": port, "device": "cpu", "steps": STEPS, "batches": BATCHES, "replicas": replicas}
        options |= {"queue": QUEUE, "deadline": DEADLINE_S, "wait-ms": WAIT_MS}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self.command = ["dllm-kernels", "serve", "tiny", *words]
        self.process = subprocess.Popen([sys.executable, "-m", "dllm_kernels", *self.command[1:]])
        while True:
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    break
            except httpx2.TransportError:
                pass
            assert self.process.poll() is None
            time.sleep(0.5)
        httpx2.post(f"{self.url}/v1/completions", json={"model": "tiny"}, timeout=60)

    def metric(self, name: str) -> float:
        """A figure of /metrics."""
        text = httpx2.get(f"{self.url}/metrics", timeout=60).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def memory(self) -> dict[str, int]:
        """Resident bytes of the front, the proxy and the replicas."""
        return {
            title: sum(_resident(pid) for pid in marked(title, self.mark))
            for title in ("ServeReplica:dllm-kernels:Front", "ProxyActor", "ServeReplica:dllm-kernels:Replica")
        }

    def close(self) -> int:
        """Ends it as a service manager does; its exit code."""
        self.process.terminate()
        return self.process.wait(120)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def load(server: Server, seconds: float, rate: float) -> dict:
    """Offers `rate` requests a second, at random moments, for a while; what came of them, and the latency of the answered."""
    # So many users that one who waits for his answer seldom is who should ask next.
    users = max(10, min(300, round(4 * rate)))
    before = {name: server.metric(name) for name in ("dllm_batch_samples_sum", "dllm_batch_samples_count")}
    stats, lasted = _locust(server, seconds, users, users / rate)
    after = {name: server.metric(name) for name in before}
    counts = {entry["name"]: entry["num_requests"] for entry in stats}
    calls = after["dllm_batch_samples_count"] - before["dllm_batch_samples_count"]
    return {
        "offered_per_s": rate,
        "sent_per_s": sum(counts.values()) / lasted,
        "answered_per_s": counts.get("200", 0) / lasted,
        "statuses": counts,
        **{f"p{share}_ms": _percentile(stats, "200", share) for share in (50, 99)},
        "refusal_p99_ms": _percentile(stats, "429", 99),
        "samples_a_call": (after["dllm_batch_samples_sum"] - before["dllm_batch_samples_sum"]) / max(1, calls),
    }


def _locust(server: Server, seconds: float, users: int, pause_s: float) -> tuple[list[dict], float]:
    """Locust's statistics by status, and the seconds from the first request to the last."""
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).parent / "locustfile.py"), "--host", server.url]
    command += ["--headless", "--json", "--skip-log", "-u", str(users), "-r", str(users), "-t", f"{seconds:g}s"]
    environment = os.environ | {"PAUSE_S": str(pause_s)}
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    stats = json.loads(out.stdout[out.stdout.index("[") :])
    begin, end = min(entry["start_time"] for entry in stats), max(entry["last_request_timestamp"] for entry in stats)
    return stats, end - begin


def _percentile(stats: list[dict], status: str, share: int) -> float | None:
    """Of the response times, which Locust counts by rounded milliseconds."""
    times = {float(ms): n for entry in stats if entry["name"] == status for ms, n in entry["response_times"].items()}
    left = share / 100 * sum(times.values())
    for ms in sorted(times):
        left -= times[ms]
        if left <= 0:
            return ms
    return None


def capacity(server: Server, seconds: float) -> float:
    """Requests a second where as many users as the queue holds ask again as soon as they are answered."""
    stats, lasted = _locust(server, seconds, QUEUE, 0)
    return sum(entry["num_requests"] for entry in stats if entry["name"] == "200") / lasted


def overload(server: Server, seconds: float, rate: float) -> dict:
    """Three times the capacity for minutes: statuses, and memory at every half minute."""
    memory, begin, parts = [], time.monotonic(), []
    while time.monotonic() - begin < seconds:
        parts.append(load(server, min(30, seconds), rate))
        memory.append(
            {"at_s": round(time.monotonic() - begin), "bytes": server.memory(), "queue": server.metric("dllm_queue_samples")}
        )
        print(memory[-1], parts[-1]["statuses"], flush=True)
    totals = [sum(sample["bytes"].values()) for sample in memory]
    statuses = {}
    for part in parts:
        for code, count in part["statuses"].items():
            statuses[code] = statuses.get(code, 0) + count
    return {
        "seconds": time.monotonic() - begin,
        "offered_per_s": rate,
        "statuses": statuses,
        "answered_per_s": [part["answered_per_s"] for part in parts],
        "p99_ms": [part["p99_ms"] for part in parts],
        "refusal_p99_ms": [part["refusal_p99_ms"] for part in parts],
        "memory": memory,
        "memory_last_over_first": totals[-1] / totals[0],
    }


def killed(rate: float, seconds: float) -> dict:
    """Two replicas, one of them killed in the middle of a load that both can carry."""
    server = Server(2)
    before = marked("ServeReplica:dllm-kernels:Replica", server.mark)
    command = [sys.executable, "-c", f"import os,time; time.sleep({seconds / 3}); os.kill({before[0]}, {signal.SIGKILL.value})"]
    killer = subprocess.Popen(command)
    result = load(server, seconds, rate)
    killer.wait()
    time.sleep(5)
    after = marked("ServeReplica:dllm-kernels:Replica", server.mark)
    result |= {"replicas_before": len(before), "replicas_after": len(after), "new_replicas": len(set(after) - set(before))}
    return result | {"exit_code": server.close()}


def malformed(server: Server, examples: int) -> dict:
    """schemathesis's own command over the OpenAPI document."""
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{server.url}/openapi.json",
        "--max-examples",
        str(examples),
    ]
    command += [
        "--checks",
        "not_a_server_error",
        "--phases",
        "examples,coverage,fuzzing",
        "--mode",
        "all",
        "--no-color",
        "--seed",
        "6",
    ]
    before = sum(server.metric(f'dllm_requests_total{{status="{code}"}}') for code in (200, 400, 404, 413, 429, 500, 503, 504))
    out = subprocess.run(command, capture_output=True, text=True)
    counts = {
        code: server.metric(f'dllm_requests_total{{status="{code}"}}') for code in (200, 400, 404, 413, 429, 500, 503, 504)
    }
    print(out.stdout[-3000:])
    generated = re.search(r"(\d[\d,]*) generated", out.stdout)
    return {
        "command": " ".join(command[1:]),
        "exit_code": out.returncode,
        "generated": int(generated[1].replace(",", "")) if generated else None,
        "completions_asked": sum(counts.values()) - before,
        "statuses_since_start": counts,
    }


def main() -> None:
    """Runs the experiments and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seconds", type=float, default=15, help="a point of the curve")
    parser.add_argument("--only", nargs="*", default=["curve", "overload", "malformed", "killed"])
    arguments = parser.parse_args()
    path = RESULTS / "scale-serve.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    result |= {"command": "python -m benchmarks.scale_serve", "date": date.today().isoformat()}
    result["machine"] = Machine(torch.device("cpu")).describe()
    server = Server(REPLICAS)
    result["server"] = {"command": " ".join(server.command), "queue": QUEUE, "steps": STEPS, "batches": BATCHES}
    top = statistics.median(capacity(server, 8) for _ in range(3))
    result["capacity_per_s"] = top
    print("capacity", top, flush=True)
    if "curve" in arguments.only:
        result["curve"] = []
        for share in (0.1, 0.25, 0.5, 0.75, 0.9, 1, 1.5, 2, 3):
            result["curve"].append({"share": share} | load(server, arguments.seconds, share * top))
            print(result["curve"][-1], flush=True)
    if "overload" in arguments.only:
        result["overload"] = overload(server, 60 * arguments.minutes, 3 * top)
    if "malformed" in arguments.only:
        result["malformed"] = malformed(server, 3000)
    result["shutdown_exit_code"] = server.close()
    if "killed" in arguments.only:
        result["killed"] = killed(0.5 * top, 30)
        print(result["killed"])
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
