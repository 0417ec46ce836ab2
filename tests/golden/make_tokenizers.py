"""Our tokenizers beside transformers 5.23.0 and rwkv 0.8.32; prints the text that
tests/models/chat_template_golden.py keeps, and fails where the two differ.

pip install transformers rwkv jinja2 tokenizers
python -m tests.golden.make_tokenizers
"""

import json
import pprint
import random
import tempfile
from pathlib import Path

from rwkv.rwkv_tokenizer import TRIE_TOKENIZER
from transformers import AutoTokenizer

from springroll.tokens.byte_tokenizer import byte_tokenizer, write_byte_tokenizer
from springroll.tokens.world_tokenizer import world_file, world_tokenizer
from tests.tokens.chat_template_golden import EXPECTED, MESSAGES, TEMPLATE, VARIABLES


def texts(count=300, length=60):
    rng = random.Random(0)
    ranges = [(1, 128), (1, 0xD800), (0x4E00, 0x9FFF), (0x1F300, 0x1F700)]
    letter = lambda: chr(rng.randrange(*rng.choice(ranges)))
    return ["".join(letter() for _ in range(length)) for _ in range(count)]


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_byte_tokenizer(folder)
        config = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<s>"}
        theirs, ours = AutoTokenizer.from_pretrained(folder), byte_tokenizer()
        assert (len(theirs), theirs.eos_token_id, theirs.pad_token_id) == (256, 0, 0)
        for text in texts():
            tokens = ours.encode(text)
            assert theirs(text).input_ids == tokens
            assert theirs.decode(tokens, skip_special_tokens=True) == ours.decode(tokens) == text
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        theirs = AutoTokenizer.from_pretrained(folder)
        usual = {"add_generation_prompt": True}
        rendered = {
            case: theirs.apply_chat_template(MESSAGES, tokenize=False, **(usual | variables))
            for case, variables in VARIABLES.items()
        }
    pprint.pprint(rendered)
    assert rendered == EXPECTED
    theirs, ours = TRIE_TOKENIZER(str(world_file("."))), world_tokenizer(".")
    for text in texts():
        assert theirs.encode(text) == ours.encode(text, special=False)
        assert ours.decode(ours.encode(text)) == text
    print("the same")


if __name__ == "__main__":
    main()
