"""What a pretrained model or a hub data set consists of, and which commit of it will be used.

Within seconds and without torch or transformers; the hub is asked for a commit only, and only where the
name is not in the local cache.
"""

import json
from pathlib import Path

HUB_TIMEOUT = 5.0  # seconds
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}  # any one of them will do
TOKENIZER_EXTRAS = {"merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}


def require_model_files(names: set[str], spec: str) -> None:
    """Raise ValueError if the file names of a model lack its config, tokenizer or safetensors weights."""
    weights = {WEIGHTS, WEIGHTS_INDEX}
    parts = {"config.json": {"config.json"}, "tokenizer": TOKENIZERS, "safetensors weights": weights}
    missing = [part for part, choices in parts.items() if not names & choices]
    if missing:
        raise ValueError(f"embedding {spec!r} has no {' and no '.join(missing)}")


def model_files(folder: Path, spec: str) -> list[Path]:
    """The files of a model folder that determine its token ids and its table.

    Raises:
        ValueError: one is missing, or the config or the header of the weights cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    names = {file.name for file in folder.iterdir() if file.is_file()}
    require_model_files(names, spec)
    try:
        model_type = json.loads((folder / "config.json").read_text())["model_type"]
        index = {} if WEIGHTS in names else json.loads((folder / WEIGHTS_INDEX).read_text())["weight_map"]
        shards = set(index.values()) or {WEIGHTS}
        for shard in sorted(shards):
            with safe_open(folder / shard, framework="np"):
                pass  # opening it checks its header and its length
    except (ValueError, LookupError, TypeError, AttributeError, OSError, SafetensorError) as error:
        reason = f"config.json or the weights cannot be used ({type(error).__name__}: {error})"
        raise ValueError(f"embedding {spec!r}: {reason}") from None
    assert model_type
    wanted = {"config.json", *TOKENIZERS, *TOKENIZER_EXTRAS, *shards}
    return sorted(folder / name for name in names & wanted)


def hub_commit(kind: str, name: str, advice: str) -> str:
    """The commit of a hub repository (`kind` model or dataset): of a model in the cache, else the newest.

    Raises:
        ValueError: no such repository, no access, or no answer; `advice` is what to do instead.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    # HTTPError is that of whichever client the library was built on
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,
        RepositoryNotFoundError,
    )

    try:
        config = try_to_load_from_cache(name, "config.json", repo_type=kind)
        if kind == "model" and isinstance(config, str):
            folder = Path(config).parent
            if (folder / WEIGHTS).exists() or (folder / WEIGHTS_INDEX).exists():
                return folder.name
        api = HfApi()
        ask = api.model_info if kind == "model" else api.dataset_info
        info = ask(name, timeout=HUB_TIMEOUT)
    except HFValidationError:
        raise ValueError(f"{name!r} is neither a folder here nor the form of a hub name; {advice}") from None
    except GatedRepoError:
        raise ValueError(f"the hub's {kind} {name!r} needs a login that may read it; {advice}") from None
    except RepositoryNotFoundError:
        raise ValueError(f"no such {kind} on the hub: {name!r}; {advice}") from None
    except (HTTPError, OSError) as error:
        state = f"not in the local cache and the Hugging Face hub cannot be reached ({error})"
        raise ValueError(f"{kind} {name!r} is {state}; {advice}") from None
    if kind == "model":
        require_model_files({file.rfilename for file in info.siblings or []}, name)
    if info.sha is None:
        raise ValueError(f"the hub names no commit of {kind} {name!r}; {advice}")
    return info.sha
