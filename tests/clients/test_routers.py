"""Two workers behind the routers people use: one drains, later the other is killed, and no client sees an error.

Streams are let finish by a draining worker. A whole answer that a killed worker had begun is asked for again by the
router, since its client has not seen a byte of it.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import threading

import openai
import pytest

from conftest import PATIENCE_S, ROOT, Worker, eventually, free_port

BIN = pathlib.Path(os.environ.get("CLIENT_TESTS_ROUTERS", "/nowhere"))
LITELLM_KEY = "sk-of-the-test-alone-0123456789"
MODEL = "haiku"
CLIENTS = 4


def gateway(program, *extra):
    """Command line of the routers that descend from one another."""

    def command(folder, port, workers):
        # Probes and breakers are quicker than by default: the test has seconds, not minutes.
        return [
            BIN / program, *extra, "--host", "127.0.0.1", "--port", port, "--worker-urls", *[w.url for w in workers],
            "--policy", "round_robin", "--health-check-interval-secs", "1", "--health-check-timeout-secs", "1",
            "--health-failure-threshold", "1", "--health-success-threshold", "1", "--cb-failure-threshold", "3",
            "--cb-timeout-duration-secs", "1", "--retry-max-retries", "5", "--retry-initial-backoff-ms", "20",
            "--retry-max-backoff-ms", "300", "--worker-startup-check-interval", "1",
            "--prometheus-port", free_port(), "--log-level", "warning" if program == "vllm-router" else "warn",
        ]

    return command


def litellm(folder, port, workers):
    """LiteLLM's proxy, with both workers as deployments of one model."""
    deployment = "  - {{model_name: {0}, litellm_params: {{model: hosted_vllm/{0}, api_base: '{1}/v1', api_key: none}}}}\n"
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n" + "".join(deployment.format(MODEL, worker.url) for worker in workers)
        + "router_settings: {num_retries: 4, retry_after: 0, allowed_fails: 0, cooldown_time: 3}\n"
        + f"general_settings: {{master_key: {LITELLM_KEY}}}\n"
    )
    return [BIN / "litellm", "--config", config, "--host", "127.0.0.1", "--port", port]


def haproxy(folder, port, workers):
    """HAProxy, which knows nothing of models, as `deploy` sets it up."""
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    # Where it listens, and which workers it has: by address, for there are no names here to resolve.
    text = text.replace("bind :8000", f"bind 127.0.0.1:{port}").replace("bind :8404", f"bind 127.0.0.1:{free_port()}")
    for at, worker in enumerate(workers, 1):
        text = text.replace(f"worker-{at}:8080", f"127.0.0.1:{worker.port}")
    assert "8080" not in text, text
    config = folder / "haproxy.cfg"
    config.write_text(text.replace(" resolvers names init-addr last,libc,none", ""))
    return [shutil.which("haproxy"), "-db", "-f", config]


ROUTERS = {
    "vllm-router": gateway("vllm-router"),
    "sglang-router": gateway("sglang-router", "launch"),
    "smg": gateway("smg", "launch"),
    "litellm": litellm,
    "haproxy": haproxy,
}


class Clients:
    """Clients that ask one thing after another, all the time, and never try again by themselves."""

    def __init__(self, url):
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=LITELLM_KEY, max_retries=0, timeout=PATIENCE_S)
        self.over, self.errors, self.answers = threading.Event(), [], 0

    def ask(self, stream):
        """One short conversation; streamed ones must end as they should."""
        messages = [{"role": "user", "content": "Rain"}]
        answer = self.client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=24, temperature=0, stream=stream,
        )
        reasons = [chunk.choices[0].finish_reason for chunk in answer if chunk.choices] if stream else [
            answer.choices[0].finish_reason
        ]
        assert reasons[-1] in ("stop", "length"), reasons

    def keep_asking(self, stream):
        """Asks until it is over."""
        while not self.over.is_set():
            try:
                self.ask(stream)
                self.answers += 1
            except Exception as error:  # noqa: BLE001: whatever a client sees is what the test is about
                self.errors.append(repr(error))

    def during(self, event, streams):
        """Asks before, while and after something happens."""
        self.over.clear()
        threads = [threading.Thread(target=self.keep_asking, args=(streams and at % 2 == 0,)) for at in range(CLIENTS)]
        for thread in threads:
            thread.start()
        self.more()
        event()
        self.more()
        self.over.set()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors

    def more(self):
        """Waits for a good number of answers."""
        goal = self.answers + 4 * CLIENTS
        eventually(lambda: self.answers >= goal or self.errors, "answers go on")


@pytest.fixture
def routed(request, tmp_path):
    """A router, by name, before two fresh workers."""
    name = request.param
    program = ROUTERS[name]("/nowhere", 0, []) if name not in ("litellm", "haproxy") else [
        BIN / "litellm" if name == "litellm" else shutil.which("haproxy")
    ]
    if program[0] is None or not pathlib.Path(program[0]).exists():
        pytest.skip(f"{name} is not tried: it is not installed here")
    flags = ["--served-model-name", MODEL, "--drain-timeout-sec", "4", "--log-level", "warn"]
    workers = [Worker(tmp_path, "reference", *flags) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    port = free_port()
    command = [str(part) for part in ROUTERS[name](tmp_path, port, workers)]
    log = tmp_path / "router.log"
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_COLOR": "1"}
    router = subprocess.Popen(
        command, stdout=log.open("wb"), stderr=subprocess.STDOUT, cwd=tmp_path, env={**os.environ, **quiet},
    )
    clients = Clients(f"http://127.0.0.1:{port}")

    def serves():
        assert router.poll() is None, log.read_text()
        try:
            clients.ask(False)
        except openai.APIError:
            return False
        return True

    def restart(worker):
        fresh = Worker(tmp_path, "reference", *flags, port=worker.port).wait_ready()
        workers.append(fresh)
        return fresh

    try:
        eventually(serves, f"{name} serves")
        yield clients, workers[:2], restart
    except BaseException:
        print(log.read_text()[-6000:], file=sys.stderr)
        raise
    finally:
        router.kill()
        router.wait()
        for worker in workers:
            worker.kill()


@pytest.mark.parametrize("routed", ROUTERS, indirect=True)
def test_no_client_sees_a_worker_drain_or_die(routed):
    clients, (first, second), restart = routed
    served = lambda worker: worker.metric("worker_tokens_generated_total")

    def drain():
        first.terminate()
        assert first.process.wait(10) == 0

    clients.during(drain, streams=True)
    assert served(second) > 0
    back = restart(first)
    # The router finds it again by itself.
    asked = threading.Thread(target=clients.during, args=(lambda: eventually(lambda: served(back), "back"), False))
    asked.start()
    asked.join()
    clients.during(second.kill, streams=False)
    assert not clients.errors, clients.errors
