"""Workers for the client tests: the built binary, started as a user would start it."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("WORKER_ORCD_BINARY", TARGET / "debug" / "worker-orcd"))
MODEL = ROOT / "models" / "haiku-moe" / "haiku-moe-mxfp4.gguf"
# Longer than any step of a test takes on a busy machine with two cores.
PATIENCE_S = 60


def free_port():
    """A port nobody listens on at this moment."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


def environment():
    """The caller's, without variables that would change a worker's flags."""
    return {name: value for name, value in os.environ.items() if not name.startswith("WORKER_ORCD_")}


def eventually(holds, what, patience_s=PATIENCE_S):
    """Waits until `holds()` is true, and returns what it returned."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {patience_s} s in vain: {what}")


def get_json(url, key=None):
    """Status and body of a GET; status 0 while nobody answers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)
    except (urllib.error.URLError, OSError):
        return 0, None


class Worker:
    """A worker process with the demo model; it is killed when the test that started it ends."""

    def __init__(self, folder, backend, *flags, port=None):
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"worker-{self.port}.log"
        command = [BINARY, "serve", "--model", MODEL, "--backend", backend, "--port", str(self.port), *flags]
        self.process = subprocess.Popen(
            [str(part) for part in command], stderr=self.log.open("wb"), stdout=subprocess.DEVNULL,
            env=environment(),
        )

    def wait_ready(self):
        """Waits until requests are taken."""

        def ready():
            assert self.process.poll() is None, self.log.read_text()
            return get_json(f"{self.url}/ready")[0] == 200

        eventually(ready, "the worker is ready")
        return self

    def health(self):
        """The body of `/health`, whatever its status."""
        return get_json(f"{self.url}/health")[1]

    def metric(self, name):
        """The value of the only sample of a metric."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith((name + " ", name + "{")):
                    return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def idle(self):
        """Whether no sequence runs or waits and every block of the cache is free."""
        names = ("worker_requests_running", "worker_requests_waiting", "worker_kv_blocks_used")
        return all(self.metric(name) == 0 for name in names)

    def terminate(self):
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        """Ends the process at once, as a crash would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def gpu_backend():
    """wgpu where the machine has a Vulkan driver, else the interpreter."""
    listed = subprocess.run([BINARY, "devices", "--json"], capture_output=True, text=True, env=environment())
    found = "wgpu" if '"wgpu"' in listed.stdout and listed.returncode == 0 else "reference"
    return os.environ.get("CLIENT_TESTS_BACKEND", found)


@pytest.fixture(scope="module")
def start_worker(tmp_path_factory):
    """Starts workers that end with the module; on the interpreter, which is quick with so small a model."""
    started = []

    def start(*flags, backend="reference", **options):
        worker = Worker(tmp_path_factory.mktemp("worker"), backend, *flags, **options)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.kill()


@pytest.fixture(scope="module")
def worker(start_worker):
    """One worker that the tests of a module share."""
    return start_worker("--served-model-name", "haiku").wait_ready()
