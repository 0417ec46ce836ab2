"""A small World vocabulary: all bytes, a few words, and pieces of letters."""

from springroll.tokens.world_tokenizer import FILE

WORDS = ["a", "ab", "abcd", "the", " the", "\n\n", "ä", "äb", "日本", "'\"", "\\n"]
PIECES = [b"\xe6\x97", b"b\xc3"]  # parts of letters are tokens too


def write_vocabulary(folder, words=(*WORDS, *PIECES)):
    """Write the file; its lines."""
    single = [chr(b) if b < 128 else bytes([b]) for b in range(256)]
    lines = []
    for token, word in enumerate([*single, *(w for w in words if w not in single)], 1):
        length = len(word.encode() if isinstance(word, str) else word)
        lines.append(f"{token} {word!r} {length}")
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines
