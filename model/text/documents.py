"""Text in files: how a record becomes a text, and a file documents. For training and for use alike; no torch."""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

TURN_END = "\n"  # between the messages of a conversation; nothing says whose turn it is


def document_text(record: object) -> str:
    """A record's text: the contents of its `messages`, one a line, or its `text`; null counts as absent.

    Raises:
        ValueError: it has neither, or one of the wrong form.
    """
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but a {type(record).__name__}")
    messages, text = record.get("messages"), record.get("text")
    if messages is not None:
        if not isinstance(messages, list) or not messages:
            raise ValueError("`messages` must be a non-empty list")
        for number, message in enumerate(messages, start=1):
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise ValueError(f"message {number} must be an object with a string `content`")
        return TURN_END.join(message["content"] for message in messages)
    if text is None:
        raise ValueError("has neither `messages` nor `text`")
    if not isinstance(text, str):
        raise ValueError(f"`text` must be a string, not a {type(text).__name__}")
    return text


def predicted_bytes(text: str, first_token: tuple[int, int] | None) -> int:
    """UTF-8 bytes of a stream's first text without its first token, which no model predicts.

    The one convention for bits per byte here: the loss of the predicted tokens in bits, by the bytes of those tokens.
    A character that the first token holds a part of counts as its own.

    Args:
        first_token: the characters that it stands for, as begin and end; None: none.
    """
    return len(text[first_token[1] if first_token else 0 :].encode())


def read_documents(lines: Iterable[str], name: str) -> Iterator[str]:
    """The documents of JSON lines in order; blank lines and blank texts are none.

    Raises:
        ValueError: a line is not a document; the message gives `name` and the line's number, from 1.
    """
    for number, line in enumerate(lines, start=1):
        line = line.strip().removeprefix("\ufeff")  # the byte-order mark that some editors put first
        if not line:
            continue
        try:
            text = document_text(json.loads(line))
            text.encode()
        except json.JSONDecodeError as error:
            reason = f"not a JSON object on one line ({error.msg} at column {error.colno})"
            raise ValueError(f"{name}, line {number}: {reason}") from None
        except UnicodeEncodeError:
            raise ValueError(f"{name}, line {number}: half of a surrogate pair is no valid text") from None
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        if text.strip():
            yield text


def check_file(path: Path, name: str) -> None:
    """Raise ValueError with `name` if there is no readable file, if it is empty, or if it is gzip by name only."""
    if path.is_dir():
        raise ValueError(f"{name} is a folder; give one file")
    if not path.is_file():
        raise ValueError(f"{name} {'is no regular file' if path.exists() else 'does not exist'}")
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None
    if not start:
        raise ValueError(f"{name} is empty")
    is_gzip, named_gzip = start == b"\x1f\x8b", path.name.endswith(".gz")
    if is_gzip != named_gzip:
        state = "is compressed with gzip but not" if is_gzip else "is not compressed with gzip but"
        raise ValueError(f"{name} {state} named .gz: rename it")


def decoded_lines(path: Path, spec: str) -> Iterator[str]:
    """The lines of a UTF-8 file, compressed if it is named .gz, with their ends.

    Raises:
        ValueError: it cannot be read to its end, or a line is not UTF-8.
    """
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(f"{spec}, line {number}: not UTF-8 ({error.reason})") from None
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"file {spec!r} cannot be read to its end: {error}") from None


def documents_of(spec: str) -> list[str]:
    """The documents of a file: each record of a `.jsonl` or `.jsonl.gz`, or all of any other file as one.

    Raises:
        ValueError: it is not there, not text, or has none but blank documents.
    """
    path = Path(spec).expanduser()
    check_file(path, f"file {spec!r}")
    lines = decoded_lines(path, spec)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        documents = list(read_documents(lines, spec))
    else:
        documents = ["".join(lines).removeprefix("\ufeff")]
    if not any(text.strip() for text in documents):
        raise ValueError(f"file {spec!r} has no text")
    return documents
