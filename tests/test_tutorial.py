"""docs/tutorial.md, as a reader follows it: its files are written, its commands and programs run in their order."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from doc_examples import tutorial, write_tutorial_files
from support import PATHS

from convrec_r1.data.adapters import jsonl

pytestmark = pytest.mark.slow(
    reason="a training, and each command in an interpreter of its own, as a reader starts them"
)


@pytest.mark.processes
def test_from_a_csv_file_to_a_served_and_published_recommender(tmp_path):
    write_tutorial_files(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, **PATHS, "PATH": python, "HF_HUB_OFFLINE": "1"}
    server, said = None, {}
    try:
        for kind, text in tutorial():
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
            if "task=serve" in text:
                server = subprocess.Popen(["bash", "-c", f"exec {text} port={port}"], cwd=tmp_path, env=env)
                _wait(f"http://127.0.0.1:{port}/health", server)
            elif "." not in kind and "task=doctor" not in text:  # which may not find the model here
                command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
                done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
                said[text] = done.stdout
        assert server is not None
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 128 + signal.SIGTERM
    finally:
        if server is not None and server.poll() is None:
            server.kill()
            server.wait()
    asked = next(out for text, out in said.items() if "genre=crime" in text)
    assert "Murder on the Orient Express (1934)" in asked
    assert "The Big Sleep (1939)" in asked
    assert "Gaudy Night" not in asked
    (thumb,) = jsonl.read(tmp_path / "thumbs.jsonl")
    assert [str(item) for item in thumb.ground_truth] == ["Neuromancer (1984)"]
    assert "license: apache-2.0" in (tmp_path / "books" / "hub" / "README.md").read_text()


def _wait(url: str, server: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while True:
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server took too long"
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
