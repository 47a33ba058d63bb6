"""A causal LM on disk as transformers saves it, of a few kilobytes."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trainables.inputs.corpus import pydoc_documents


def tiny_gpt2(folder: Path, shard_size: str = "1GB", rows: int = 300) -> GPT2LMHeadModel:
    """A GPT-2 of `rows` x 16 with a byte-level BPE of about 290 tokens, saved as transformers saves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([document.text for document in pydoc_documents()[-5:]], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32)
    fast.save_pretrained(folder)
    config = GPT2Config(vocab_size=rows, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder, max_shard_size=shard_size)
    return model
