"""Tokenizers of the families' own kinds, with a few hundred entries each, and texts that are hard to read."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AltCLIPConfig, ChineseCLIPConfig, CLIPConfig, MetaClip2Config, SiglipConfig

WORDS = ["a", "A", "the", "photo", "of", "dog", "dogs", "cat", "red", "green", "two", "people", "man", "child"]
WORDS += ["stands", "in", "on", "water", "Beach", "runs", "ball", "snow"]
_PARTS = "dog,Cat,'s,n't,é,e\u0301,ß,İ,Σ,ﬁ,½,猫,東京,한,مر,שלום,हि,Привет,😀,👩\u200d👧,🇩🇪,\u200b,\u00a0,\u3000"
_PARTS += ",\x00,\x1c,\x7f,https://x.org/?a=b,<|endoftext|>,[SEP],<eos>,<s>"
_LETTERS = "aAbBzZ09   \t\n.,!?'-_/#@&▁"


def hard_texts(count: int = 200) -> list[str]:
    """Of up to 20 parts each, and four that are always among them."""
    draw = random.Random(1)
    parts = [*_PARTS.split(","), *_LETTERS]
    texts = ["".join(draw.choices(parts, k=draw.randint(1, 20))) for _ in range(count - 4)]
    return ["", " ", "dog " * 500, "The Dog's RED ball\nis ΟΔΟΣ", *texts]


def captions(count: int = 400) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


def clip(folder: Path, positions: int = 77) -> Path:
    """CLIP's: `vocab.json` and `merges.txt` with ends of words."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", show_progress=False)
    trained.train_from_iterator([text.lower() for text in captions()], trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merged = ["".join(pair) for pair in merges]
    known = list(dict.fromkeys([*letters, *(part for pair in merges for part in pair), *merged]))
    vocab = {word: i for i, word in enumerate([*known, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_config(folder, "CLIPTokenizer", model_max_length=77)
    text = {"max_position_embeddings": positions, "vocab_size": len(vocab), "eos_token_id": len(vocab) - 1}
    CLIPConfig(text_config=text).save_pretrained(folder)
    return folder


def gemma(folder: Path, tokenizer_class: str = "GemmaTokenizer", **stated: Any) -> Path:
    """SigLIP 2's: Gemma's BPE, which closes a text and lowers nothing."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([*captions(), *(text.upper() for text in captions(50))], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    also = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_input_names": ["input_ids"]}
    write_config(folder, tokenizer_class, **{**ends, **also, **stated})
    SiglipConfig(text_config={"max_position_embeddings": 64}).save_pretrained(folder)
    return folder


def pieces(folder: Path, known: str = "<>") -> Path:
    """SigLIP's first: `spiece.model` and nothing else. Needs the package sentencepiece. The published one knows <>."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.lower() for text in captions()]),
        model_writer=model,
        vocab_size=120,
        hard_vocab_limit=False,
        minloglevel=2,
        user_defined_symbols=list(known),
        **{"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
    )
    (folder / "spiece.model").write_bytes(model.getvalue())
    ends = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    write_config(folder, "SiglipTokenizer", do_lower_case=True, model_input_names=["input_ids"], **ends)
    SiglipConfig(text_config={"max_position_embeddings": 64}).save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    """Chinese-CLIP's: a `vocab.txt` of words, letters and signs."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-红色方块猫狗")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters), *WORDS]
    (folder / "vocab.txt").write_text(
        "\n".join(dict.fromkeys(word.lower() if word[0] != "[" else word for word in words))
    )
    write_config(folder, "BertTokenizer", do_lower_case=True, model_max_length=512)
    ChineseCLIPConfig(text_config={"max_position_embeddings": 512}).save_pretrained(folder)
    return folder


def roberta(folder: Path, family: type[Any]) -> Path:
    """XLM-R's, which AltCLIP and MetaCLIP 2 use: a unigram `tokenizer.json`."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(captions(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_config(folder, "XLMRobertaTokenizer", model_max_length=77)
    positions = 514 if family is AltCLIPConfig else 77
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    family(text_config={"max_position_embeddings": positions, **ids}).save_pretrained(folder)
    return folder


def write_config(folder: Path, name: str, **stated: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **stated}))


def restated(folder: Path, **changes: Any) -> Path:
    """The same folder with other keys in its tokenizer_config.json; None takes a key out."""
    path = folder / "tokenizer_config.json"
    stated = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
    return folder


FAMILIES = {
    "clip": clip,
    "long clip": lambda folder: clip(folder, 248),
    "siglip": pieces,
    "siglip 2": gemma,
    "chinese clip": bert,
    "altclip": lambda folder: roberta(folder, AltCLIPConfig),
    "metaclip 2": lambda folder: roberta(folder, MetaClip2Config),
}
CONTEXTS = dict(zip(FAMILIES, (77, 248, 64, 64, 52, 77, 77), strict=True))
