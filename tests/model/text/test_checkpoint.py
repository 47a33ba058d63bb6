"""A model folder: what it holds, and that nothing else is taken for one."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from small import VOCAB, model_config

from model import load
from model.language_model import LanguageModel
from model.text.checkpoint import CONFIG, DIGEST, TOKENIZER, WEIGHTS, _digest, load_model, save_model
from trainables.inputs.corpus import _train_bpe

TEXT = "the cat sleeps under the tree"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model with a tokenizer."""
    tokenizer = _train_bpe([TEXT], 270)
    sizes = vars(model_config()) | {"vocab_size": tokenizer.get_vocab_size()}
    table = torch.randn(sizes["vocab_size"], sizes["embedding_dim"], generator=torch.Generator().manual_seed(6))
    save_model(LanguageModel(type(model_config())(**sizes), table, seed=1), tmp_path / "m", tokenizer.to_str())
    return tmp_path / "m"


def edit_config(folder: Path, seal: bool = True, **changes: object) -> None:
    """Change `config.json`; None takes a field away. Sealed, the digest is that of the changed files."""
    fields = json.loads((folder / CONFIG).read_text()) | changes
    fields = {name: value for name, value in fields.items() if value is not None}
    if seal:
        fields[DIGEST] = _digest({k: v for k, v in fields.items() if k != DIGEST}, folder)
    (folder / CONFIG).write_text(json.dumps(fields))


def edit_weights(folder: Path, change: Callable[[dict], object]) -> None:
    arrays = load_arrays(folder / WEIGHTS)
    change(arrays)
    save_arrays(arrays, folder / WEIGHTS)
    edit_config(folder)


def test_a_folder_is_readable_without_torch(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, TOKENIZER}
    state = load_model(folder).state_dict()
    arrays = load_arrays(folder / WEIGHTS)
    assert arrays.keys() == state.keys()
    assert all(torch.equal(torch.from_numpy(arrays[name]), tensor) for name, tensor in state.items())
    header = (folder / WEIGHTS).read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert names.keys() == state.keys()  # nothing of torch's beside the tensors


def test_a_loaded_model_works_on_text(folder: Path) -> None:
    lm = load(str(folder))
    assert lm.decode(lm.encode(TEXT)) == TEXT
    assert lm.score(TEXT).tokens == len(lm.tokens(TEXT)) - 1


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "No such file"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "No such file"),
    "no tokenizer": (lambda f: (f / TOKENIZER).unlink(), "No such file"),
    "config is no JSON": (lambda f: (f / CONFIG).write_text("{"), "no usable model folder"),
    "config is a list": (lambda f: (f / CONFIG).write_text("[]"), "must have the fields"),
    "unknown field": (lambda f: edit_config(f, dropout=0.1), "and no others"),
    "missing field": (lambda f: edit_config(f, context_dim=None), "must have the fields"),
    "no digest": (lambda f: edit_config(f, seal=False, sha256=None), "must have the fields"),
    "a size that is text": (lambda f: edit_config(f, context_dim="8"), "context_dim in config.json is '8'"),
    "a size that is a truth value": (lambda f: edit_config(f, context_dim=True), "is True"),
    "no size": (lambda f: edit_config(f, context_dim=0), "at least 1"),
    "unknown mode": (lambda f: edit_config(f, context_mode="sideways"), "unknown context mode"),
    "another mode": (lambda f: edit_config(f, seal=False, context_mode="final_only"), "saved together"),
    "absurd width": (lambda f: edit_config(f, embedding_dim=10**9), "has 4,184 numbers"),
    "beyond any memory": (lambda f: edit_config(f, context_dim=10**15), "has 4,184 numbers"),
    "truncated": (lambda f: os.truncate(f / WEIGHTS, 5_000), "saved together"),
    "truncated and sealed": (lambda f: (os.truncate(f / WEIGHTS, 5_000), edit_config(f)), "damaged"),
    "one bit": (
        lambda f: (f / WEIGHTS).write_bytes((data := (f / WEIGHTS).read_bytes())[:-1] + bytes([data[-1] ^ 1])),
        "saved together",
    ),
    "another tokenizer": (lambda f: (f / TOKENIZER).write_text("{}"), "saved together"),
    "no tokenizer's form": (
        lambda f: ((f / TOKENIZER).write_text("{}"), edit_config(f)),
        "no usable tokenizer",
    ),
    "missing tensor": (lambda f: edit_weights(f, lambda a: a.pop("input_norm.bias")), "numbers"),
    "foreign tensors": (lambda f: edit_weights(f, lambda a: a.update(wte=a.pop("table"))), "table is not there"),
    "another name": (lambda f: edit_weights(f, lambda a: a.update(ln=a.pop("input_norm.bias"))), "bias is not there"),
    "turned": (lambda f: edit_weights(f, lambda a: a.update(table=a["table"].T.copy())), r"table is \(12, "),
    "halved": (lambda f: edit_weights(f, lambda a: a.update(table=a["table"].astype("float16"))), "is F16, not F32"),
    "pickle": (lambda f: (torch.save({}, f / WEIGHTS), edit_config(f)), "damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_anything_else_is_refused_in_one_sentence(folder: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(folder, "cpu")
    assert "\n" not in str(caught.value)


def test_a_model_takes_the_place_of_an_older_one_and_of_nothing_else(folder: Path, table: torch.Tensor) -> None:
    newer = LanguageModel(model_config(1, 1), table, seed=2)
    save_model(newer, folder, "{}")
    assert load_model(folder).config == newer.config
    assert {path.name for path in folder.iterdir()} == {WEIGHTS, CONFIG, TOKENIZER}
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    other = folder.parent / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no model"):
        save_model(newer, other, "{}")
    assert (other / "chapter.txt").read_text() == "years of work"


KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import torch
from model.text import checkpoint
from model.language_model import LanguageModel

older, folder = checkpoint.load_model(Path(sys.argv[1])), Path(sys.argv[1])
newer = LanguageModel(older.config, older.table, seed=77)
write = checkpoint.save_file
def cut_off(tensors, path):
    write(tensors, path)
    os.truncate(path, 1000)
    os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = cut_off
checkpoint.save_model(newer, folder, "{}")
"""


def test_a_writer_that_is_killed_leaves_the_older_model(folder: Path) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
    script = textwrap.dedent(KILLED_WHILE_WRITING)
    done = subprocess.run([sys.executable, "-c", script, str(folder)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()} == before
    load(folder)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, table: torch.Tensor) -> None:
    assert len(table) == VOCAB
    with pytest.raises(TypeError):
        save_model(LanguageModel(model_config(), table, seed=1), tmp_path / "m", 5)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
