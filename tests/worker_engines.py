"""What runs in Ray's actors in tests. A module of its own: the actor's process imports it."""

import os
import sys
from dataclasses import replace

from convrec_r1.distill.teachers import served
from convrec_r1.distill.teachers.server import ModelServer
from convrec_r1.policy.skeleton import load_weights
from convrec_r1.policy.weights import stream_weights
from convrec_r1.rollout.hf import HFEngine

ANSWERS = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def reply(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.reply({})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = f"{asked['messages'][-1]['content']}: {os.getpid()} {os.getppid()}"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}
        self.reply({"id": "1", "object": "chat.completion", "created": 1, "model": asked["model"], "choices": [choice]})
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
"""A server that answers with the question and the ids of its process and of its guard."""


class Answers(ModelServer):
    """Serves that in the place of a model, which would take a minute to start."""

    def __init__(self, options) -> None:
        super().__init__(options)
        served.SERVE = [sys.executable, "-c", ANSWERS]

    async def answer(self, question):
        answer = await super().answer(question)
        return replace(answer, text=f"{answer.text} {os.getpid()}")


class Dies(HFEngine):
    def generate(self, *arguments, **options):
        print("the end is near", file=sys.stderr, flush=True)
        os._exit(7)


class Raises(HFEngine):
    def generate(self, *arguments, **options):
        raise RuntimeError("CUDA out of memory, or so")


class Forgets(HFEngine):
    """Has other weights than it was given."""

    def load(self, weights) -> None:
        super().load(weights)
        name, _ = next(iter(stream_weights(self.policy)))
        load_weights(self.policy, [(n, w + (n == name)) for n, w in stream_weights(self.policy)])

    def generate(self, *arguments, **options):
        raise AssertionError("sampled from other weights")
