"""The server on Ray Serve: a front that speaks HTTP, and replicas with a card each that batch rows into calls."""

import signal
import socket
import threading
from collections.abc import Callable

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from dllm_kernels.batch.ray import connect
from dllm_kernels.serving.app import Desk, Lost, create_app
from dllm_kernels.serving.batcher import Batcher
from dllm_kernels.serving.replica import Answer, Row, Samplers, Settings

NAME = "dllm-kernels"


class Replica:
    """A replica's samplers behind a batcher."""

    def __init__(self, settings: Settings):
        self._batcher = Batcher(Samplers(settings).run, max(settings.batches), settings.wait_s)

    async def __call__(self, row: Row) -> Answer | None:
        """A row's answer; None where nobody waits for it any more."""
        return await self._batcher(row)


@serve.ingress()
class Front:
    """The one process that speaks HTTP: it knows how many samples wait, and asks again where a replica died."""

    def __init__(self, settings: Settings, seq_len: int, replicas: DeploymentHandle):
        self._replicas, self._desk = replicas, Desk(settings, seq_len, self._generate, settings.prompt_limit())

    def __serve_build_asgi_app__(self):
        return create_app(self._desk)

    async def drain(self) -> None:
        """Returns when all requests that were taken are answered; no more are."""
        await self._desk.drained()

    async def _generate(self, row: Row) -> Answer | None:
        for _ in range(2):
            try:
                return await self._replicas.remote(row)
            except (RayActorError, ReplicaUnavailableError):
                continue
        raise Lost


def run(settings: Settings, seq_len: int, host: str, port: int, ray: str, say: Callable[[str], None]) -> None:
    """Serves until SIGINT or SIGTERM, then answers what was taken, and ends.

    Raises:
        ValueError: nobody can listen at the address, no cluster answers at `ray`, or it has too little room.
    """
    _check_port(host, port)
    room = connect(ray, settings.device, settings.threads, settings.replicas)
    if room < settings.replicas:
        raise ValueError(f"{settings.replicas} replicas are asked for, and the Ray cluster has room for {room}")
    say(f"packing {settings.model} for {len(settings.steps) * len(settings.batches)} captured sizes a replica")
    serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
    card = {"num_gpus": 1} if settings.device != "cpu" else {"num_cpus": settings.threads}
    replicas = serve.deployment(Replica, name="Replica").options(
        num_replicas=settings.replicas,
        # The next call's rows arrive while one runs.
        max_ongoing_requests=2 * max(settings.batches),
        ray_actor_options=card,
        health_check_period_s=2,
    )
    # Requests over the queue are refused by the front, with 429, so it must be able to hear of them.
    front = serve.deployment(Front, name="Front").options(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0})
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    handle = serve.run(front.bind(settings, seq_len, replicas.bind(settings)), name=NAME, route_prefix="/")
    say(f"serving {settings.model} on http://{host}:{port}/v1")
    stop.wait()
    handle.drain.remote().result(timeout_s=settings.deadline_s + 5)
    serve.shutdown()


def _check_port(host: str, port: int) -> None:
    """Raises ValueError where nobody can listen: Ray Serve would look for a way for minutes."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ValueError(f"cannot listen on {host}:{port}: {error}") from error
