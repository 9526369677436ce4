"""`nextile serve` as a process: where it is, how it ends, what else speaks to it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "nextile", "serve"]
LONG = {"prompt": "a", "max_tokens": 300, "min_tokens": 300, "stream": True}


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory) -> Path:
    """A model folder."""
    path = tmp_path_factory.mktemp("models") / "letters"
    made("lm").save(path)
    return path


@contextmanager
def process(folder: Path, *arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and its address."""
    command = [*COMMAND, str(folder), "--port", "0", "--device", "cpu", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env) as running:
        try:
            assert running.stderr is not None
            said = [running.stderr.readline(), running.stderr.readline()]
            assert said[0] == f"loading {folder}\n", said
            assert said[1].startswith("serving letters at http://127.0.0.1:"), said
            yield running, said[1].split()[-1]
        finally:
            running.kill()


def asked(url: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    """A response to be read; the key of `authorization` and the like are headers."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **headers})
    return urllib.request.urlopen(request, timeout=60)


def test_sigterm_lets_what_runs_be_finished_and_exits_0(folder):
    with process(folder) as (running, address):
        with asked(f"{address}/v1/completions", LONG) as response:
            assert response.readline().startswith(b"data: ")
            running.send_signal(signal.SIGTERM)
            rest = response.read().decode()
        assert '"finish_reason":"length"' in rest
        assert rest.endswith("data: [DONE]\n\n")
        assert running.wait(30) == 0
        assert running.stderr is not None
        assert running.stderr.read() == ""


@pytest.mark.slow  # a process takes its time to start
def test_a_second_ctrl_c_ends_it_at_once(folder):
    endless = {**LONG, "max_tokens": 100_000, "min_tokens": 100_000}
    with process(folder) as (running, address), asked(f"{address}/v1/completions", endless) as response:
        assert response.readline()
        running.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert running.poll() is None
        running.send_signal(signal.SIGINT)
        assert running.wait(5) == 130


def test_the_key_comes_from_the_environment_and_curl_knows_it(folder):
    with process(folder, "--name", "letters", NEXTILE_API_KEY="s3cret") as (running, address):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            asked(f"{address}/v1/models")
        with asked(f"{address}/v1/models", authorization="Bearer s3cret") as response:
            assert json.loads(response.read())["data"][0]["id"] == "letters"
        if curl := shutil.which("curl"):
            command = [
                curl, "-sS", "--fail-with-body", "-u", "me:s3cret", "-H", "content-type: application/json",
                "-d", '{"prompt": "ab", "max_tokens": 5, "seed": 1}', f"{address}/v1/completions",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert json.loads(done.stdout)["usage"]["prompt_tokens"] == 2
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 0


# --- what cannot be served --------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_an_error_in_one_line(nextile_serve, folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, err = nextile_serve(folder, "--port", str(port))
    assert (code, err.count("\n")) == (1, 1)
    assert f"cannot serve at 127.0.0.1:{port}" in err
    assert "choose another --port" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--host", "0.0.0.0"), 2, "give an --api-key, or say --allow-anyone"),
        (("--host", "::"), 2, "give an --api-key, or say --allow-anyone"),
        (("--host", "no.such.host.invalid"), 2, "is not known"),
        (("--api-key", "two\nlines"), 2, "printable ASCII"),
        (("--api-key", ""), 2, "printable ASCII"),
        (("--port", "70000"), 2, "70000 is no port"),
        (("--port", "-1"), 2, "too small"),
        (("--drain", "-1"), 2, "drain is -1"),
        (("--memory", "0"), 2, "memory is 0"),
        (("--rows", "0"), 2, "too small"),
        (("--quantize", "int2"), 2, "'int2' is no way to quantize: choose int8 or int4"),
    ],
)
def test_what_cannot_be_meant_is_an_error_in_one_line(nextile_serve, folder, arguments, code, said):
    found, err = nextile_serve(folder, *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert said in err


def test_a_model_that_is_not_there_is_an_error_and_frees_the_port(nextile_serve, tmp_path):
    code, err = nextile_serve(tmp_path, "--port", "0")
    assert code == 1
    assert err.splitlines()[-1].startswith("nextile: ")


def test_compiling_without_a_compiler_is_an_error_in_one_line(nextile_serve, folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, err = nextile_serve(folder, "--compile")
    assert (code, err.count("\n")) == (2, 1)
    assert "--compile needs a C++ compiler (CXX, else g++)" in err


def test_without_the_libraries_it_says_what_to_install(nextile_serve, folder, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("nextile.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    code, err = nextile_serve(folder)
    assert (code, err) == (1, "nextile: serving needs fastapi: pip install 'nextile[serve]'\n")


@pytest.fixture
def nextile_serve(capsys, monkeypatch):
    """Runs `nextile serve` in this process, where it is not to come to serving."""
    from nextile.cli.main import run

    monkeypatch.delenv("NEXTILE_DEBUG", raising=False)

    def call(folder: Path, *arguments: str) -> tuple[int, str]:
        code = run(["serve", str(folder), *arguments])
        return code, capsys.readouterr().err

    return call


# --- lm_eval ----------------------------------------------------------------------------------------------------------

TASK = """
task: letters
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
CODE = """
import json, sys
import lm_eval
from lm_eval.tasks import TaskManager

url, folder, tasks = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={"base_url": url, "model": "letters", "tokenizer": folder, "tokenizer_backend": "huggingface",
                "num_concurrent": 4, "batch_size": 4, "max_length": 64},
    tasks=["letters"], task_manager=TaskManager(include_path=tasks), log_samples=True, bootstrap_iters=0,
)
print(json.dumps([[float(r[0][0]) for r in s["resps"]] for s in found["samples"]["letters"]]))
"""


@pytest.mark.slow
def test_lm_eval_s_local_completions_sees_what_the_model_says(folder, made, tmp_path):
    for name in ("lm_eval", "tenacity", "aiohttp"):
        pytest.importorskip(name, reason="pip install 'lm-eval[api]'")
    questions = [{"question": "abc", "choices": ["de", "a.", "hh"], "answer": 0},
                 {"question": "fg", "choices": ["f", "gab"], "answer": 1}]  # fmt: skip
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
    (tmp_path / "letters.yaml").write_text(TASK.format(data=tmp_path / "q.jsonl"))
    with process(folder) as (_, address):
        command = [sys.executable, "-c", CODE, f"{address}/v1/completions", str(folder), str(tmp_path)]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    from nextile.tasks.harness import log_likelihoods

    model: Any = made("lm")
    for each, likelihoods in zip(questions, found, strict=True):
        given, *choices = [model.tokenizer.encode(text) for text in (each["question"], *each["choices"])]
        pairs = [(given, choice) for choice in choices]
        wanted = [nats for nats, _ in log_likelihoods(model.model, pairs)]
        assert likelihoods == pytest.approx(wanted, abs=1e-4)
