"""The commands that use a trained model: `model/generate.py` and `model/evaluate.py`."""

import gzip
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from servers import answering
from small import model_config

from model import evaluate, generate, load
from model.cli import run
from model.config import RUN
from model.language_model import LanguageModel
from model.text.chat import Chat
from model.text.checkpoint import save_model
from model.text.continuation import Continuation
from model.text.documents import document_text
from model.text.sampling import Sampling
from model.text.text_model import TextModel
from trainables.inputs.corpus import _train_bpe

ROOT = Path(__file__).parents[2]
TEXT = "the cat sleeps under the tree; the dog runs over the river\nthe Bär 猫"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model."""
    tokenizer = _train_bpe([TEXT], 280)
    sizes = vars(model_config(2, 2, "prev_and_current")) | {"vocab_size": tokenizer.get_vocab_size()}
    table = torch.randn(sizes["vocab_size"], sizes["embedding_dim"], generator=torch.Generator().manual_seed(6))
    path = tmp_path_factory.mktemp("model") / "m"
    save_model(LanguageModel(type(model_config())(**sizes), table, seed=1), path, tokenizer.to_str())
    return path


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command in this process: exit code, standard output, standard error."""

    def call(main: Callable[[], None], *args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        try:
            code = run(main)
        except SystemExit as end:  # argparse
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def test_text_is_streamed_as_the_model_makes_it(folder: Path, command: Run) -> None:
    options = ["--max-tokens", 12, "--temperature", 0.7, "--top-k", 40, "--top-p", 0.9, "--seed", 3]
    code, out, err = command(generate.main, folder, "the cat", *options, "--device", "cpu")
    pieces = load(folder, "cpu").generate("the cat", 12, 0.7, 40, 0.9, 3)
    assert (code, out) == (0, "".join(pieces) + "\n")
    assert err.startswith("12 tokens, ")
    assert err.endswith(" tokens/s\n")


def test_the_prompt_may_stand_anywhere(folder: Path, command: Run) -> None:
    first = command(generate.main, folder, "the cat", "--chat", "--max-tokens", 4)[:2]
    assert first[0] == 0
    assert first == command(generate.main, folder, "--max-tokens", 4, "--chat", "the cat")[:2]
    assert first == command(generate.main, "--max-tokens", 4, folder, "--chat", "the cat")[:2]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{folder}", "the", "--top-p", "0"], "top_p must be above 0"),
        (["{folder}", "the", "--top-p", "1.5"], "top_p must be above 0"),
        (["{folder}", "the", "--temperature", "-1"], "temperature must be"),
        (["{folder}", "the", "--top-k", "0"], "top_k must be at least 1"),
        (["{folder}", "the", "--max-tokens", "many"], "invalid int value"),
        (["{folder}", "the", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        (["{folder}/none", "the"], "no usable model folder"),
        (["{folder}", ""], "the prompt is empty"),
        (["{folder}"], "give a prompt"),
        (["{folder}", "--chat"], "give a prompt"),
        (["models:/nothing@champion", "the"], "MLFLOW_TRACKING_URI"),
        (["models:/nothing", "the"], "models:/nothing names no version: models:/nothing@champion, say"),
        (["runs:/nothing/model", "the"], "runs:/nothing/model is neither a folder nor of the form models:/NAME@ALIAS"),
        (["{folder}", "the \udcff"], "the prompt is not UTF-8"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_exit_code_2(
    folder: Path, command: Run, args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow.set_tracking_uri(None)  # whatever ran before
    code, out, err = command(generate.main, *(arg.format(folder=folder) for arg in args))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ("sqlite:////nowhere/x%20y.db", "MLFLOW_TRACKING_URI names /nowhere/x y.db, and there is no such database"),
        ("postgresql://ada:hidden@127.0.0.1:9/d", "MLFLOW_TRACKING_URI names a database that cannot be used: "),
        ("http://127.0.0.1:9", "models:/m@champion cannot be had: "),
        ("silent", "models:/m@champion cannot be had: "),
    ],
)
def test_a_registry_that_is_not_there_is_one_sentence_in_time(
    command: Run, monkeypatch: pytest.MonkeyPatch, registry: str, message: str
) -> None:
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.delenv(name, raising=False)
    mlflow.set_tracking_uri(None)  # whatever ran before
    with answering(None) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", silent if registry == "silent" else registry)
        began = time.monotonic()
        code, out, err = command(generate.main, "models:/m@champion", "the")
    assert time.monotonic() - began < 10
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert "hidden" not in err
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_model_of_plain_text_does_not_chat(folder: Path, command: Run, tmp_path: Path) -> None:
    """One whose folder does not say may: the tests above."""
    for chat, record in ((False, {"chat": False}), (True, {"chat": True}), (True, {}), (True, [])):
        own = shutil.copytree(folder, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
        (own / RUN).write_text(json.dumps(record))
        code, out, err = command(generate.main, own, "the cat", "--chat", "--max-tokens", 3)
        assert code == (0 if chat else 2)
        if not chat:
            assert (out, err.count("\n")) == ("", 1)
            assert "trained on plain text" in err
        plain = command(generate.main, own, "the cat", "--max-tokens", 3)
        assert plain[1] == command(generate.main, folder, "the cat", "--max-tokens", 3)[1]


def test_a_fault_of_the_program_is_not_the_users(
    folder: Path, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("of no concern to a user")

    monkeypatch.setattr(Sampling, "draw", broken)
    with pytest.raises(ValueError, match="of no concern"):
        command(generate.main, folder, "the cat")


def start(*args: object, **options: object) -> "subprocess.Popen[bytes]":
    script = ROOT / "model" / "generate.py"
    return subprocess.Popen([sys.executable, str(script), *map(str, args)], **options)  # type: ignore[call-overload,no-any-return]


def test_the_prompt_may_come_from_standard_input_and_ctrl_c_ends_it(folder: Path) -> None:
    pipe = subprocess.PIPE
    process = start(folder, "-", "--max-tokens", 10**9, stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("the Bär\n".encode())
    process.stdin.close()
    assert process.stdout.read(20)  # it comes while more is made
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(30) == 130
    assert process.stderr is not None
    assert process.stderr.read() == b"\n"


def test_in_a_terminal_one_talks_by_turns(folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = start(folder, "--chat", "--max-tokens", 15, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs)
    os.write(ours, b"the cat\n\nthe dog\n\x04")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    os.close(ours)
    os.close(theirs)
    chat = Chat(Continuation(load(folder, "cpu"), Sampling(max_tokens=15)))
    replies = ["".join(chat.say(turn)) for turn in ("the cat", "the dog")]  # a blank line is no turn
    assert out.decode().replace("> ", "") == "".join(reply + "\n" for reply in replies) + "\n"


def test_a_chat_is_laid_out_as_documents_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(folder, "cpu")
    said = lm.encode("\nthe cat\n"), lm.encode("dog")
    read: list[int] = []

    def drawing(tokens: list[int]) -> Sampling:
        waiting = iter(tokens)
        monkeypatch.setattr(Sampling, "draw", lambda *_: next(waiting))
        return Sampling(max_tokens=len(tokens) + 5 * (tokens is said[0]))

    class Watched(TextModel):
        def read(self, tokens: list[int], state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            read.extend(tokens[:-1])  # it steps to the last
            return super().read(tokens, state)

        def step(self, token: int, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            read.append(token)
            return super().step(token, state)

    continuation = Continuation(Watched(lm.network, lm.tokenizer), drawing(said[0]))
    chat = Chat(continuation)
    assert "".join(chat.say("under the tree")) == "the cat"  # up to where the next turn begins
    continuation.sampling = drawing(said[1])
    assert "".join(chat.say("the Bär")) == "dog"  # cut off by its length
    chat.say("")
    turns = ["under the tree", "\nthe cat", "the Bär", "dog", "", ""]
    assert lm.decode(read) == document_text({"messages": [{"content": turn} for turn in turns]})


def test_a_file_is_scored_as_its_text(folder: Path, command: Run, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + (TEXT * 9).replace("\n", "\r\n").encode())
    expected = load(folder, "cpu").score((TEXT * 9).replace("\n", "\r\n"))
    code, out, _ = command(evaluate.main, folder, tmp_path / "a.txt", "--json")
    found = json.loads(out)
    assert code == 0
    assert found.pop("seconds") > 0
    assert found == vars(expected) | {"documents": 1}
    code, out, _ = command(evaluate.main, folder, tmp_path / "a.txt")
    assert f"PPL            {expected.ppl:,.2f}\n" in out
    assert f"bits per byte  {expected.bits_per_byte:.3f}\n" in out


def test_records_are_scored_as_one_stream(folder: Path, command: Run, tmp_path: Path) -> None:
    records = [{"text": "the cat"}, {"messages": [{"content": "the dog"}, {"content": "runs"}]}, {"text": " "}]
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    code, out, _ = command(evaluate.main, folder, tmp_path / "a.jsonl.gz", "--json")
    found = json.loads(out)
    assert (code, found["documents"]) == (0, 2)
    assert found["ppl"] == load(folder, "cpu").score(["the cat", "the dog\nruns"]).ppl


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "has no text"),
        ("one.txt", b"t", "one token"),
        ("character.txt", "日".encode(), "one character"),
        ("latin.txt", "Bär".encode("latin-1"), "line 1: not UTF-8"),
        ("image.png", b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
        ("a.jsonl", b'{"texts": "a"}\n', "line 1: has neither"),
        ("blank.jsonl", b'{"text": " "}\n', "has no text"),
        ("cut.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-9], "cannot be read to its end"),
        ("not.txt.gz", b"text", "not compressed"),
    ],
)
def test_a_file_without_usable_text_is_refused(
    folder: Path, command: Run, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, out, err = command(evaluate.main, folder, tmp_path / name)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_is_no_text(folder: Path, command: Run, tmp_path: Path) -> None:
    code, _, err = command(evaluate.main, folder, tmp_path)
    assert code == 2
    assert "is a folder" in err
