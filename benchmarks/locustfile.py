"""Users of the server, for Locust: each asks, waits for the answer, and asks again after a random pause, PAUSE_S on average."""

import os
import random

from gevent import sleep
from locust import FastHttpUser, task

PAUSE_S = float(os.environ["PAUSE_S"])


class User(FastHttpUser):
    """Asks for one sample at a time; requests are counted under the status of their answer."""

    connection_timeout = network_timeout = 60

    def on_start(self) -> None:
        """Users begin apart from each other."""
        self._pause()

    def _pause(self) -> None:
        sleep(random.expovariate(1 / PAUSE_S) if PAUSE_S else 0)

    @task
    def complete(self) -> None:
        """One request."""
        with self.client.post("/v1/completions", json={"model": "tiny"}, catch_response=True) as response:
            response.request_meta["name"] = str(response.status_code)
            response.success()
        self._pause()
