"""The tokenizer of a small chat model: bytes, the marks of turns, and a template."""

import json
from pathlib import Path

from springroll.tokens import write_byte_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 258


def chat_folder(folder: Path, template: str = CHATML) -> Path:
    """A folder whose tokens 256 and 257 are <|im_start|> and <|im_end|>, which ends a turn."""
    write_byte_tokenizer(folder)
    made = json.loads((folder / "tokenizer.json").read_text())
    mark = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for number, text in enumerate(("<|im_start|>", "<|im_end|>"), 256):
        made["added_tokens"].append({"id": number, "content": text, "special": True} | mark)
    made["post_processor"] = None
    settings = {"eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
