"""Damage to bytes and texts, drawn from a seeded generator."""

import random

NUMBERS = [bytes([b]) * n for b in (0x00, 0x7F, 0x80, 0xFF) for n in (1, 2, 4, 8)]  # lengths and offsets at their ends
# What a config or a list is made of. No '*' and no '<': '9**9**9' is a program that does not end.
SIGNS = list("()[]{}='\",.:;#\\\n\t /-+_%@~0123456789aeix") + [
    "None", "True", "1e999", "-1", "{{", "}}", "_base_", "_delete_", "dict(", "..", "\0", "\ufeff", "é", "\u2028",
    "\r\n", "[" * 99, "(" * 300, "'''", "lambda:", "if ", "type", "0x",
]  # fmt: skip


def damaged(content: bytes, rng: random.Random) -> bytes:
    """One to four damages: flipped bits, other bytes, parts lost, doubled, moved, cut off or put in."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 16, 64, 1024))
        kind = rng.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + length] = rng.randbytes(min(length, len(data) - at))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            number = rng.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif kind == 6:
            other = rng.randrange(len(data) + 1)
            data[at:at] = data[other : other + length]
    return bytes(data)


def damaged_text(text: str, rng: random.Random) -> str:
    """One to four damages of lines, words and signs."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        at, line, other = rng.randrange(len(text) + 1), rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + rng.choice(SIGNS) + text[at:]
        elif kind == 1:
            text = text[:at] + rng.choice(SIGNS) + text[at + rng.randint(1, 6) :]
        elif kind == 2:
            lines[line], lines[other] = lines[other], lines[line]
            text = "\n".join(lines)
        elif kind == 3:
            del lines[line]
            text = "\n".join(lines)
        elif kind == 4:
            words = lines[line].split(" ")
            words.insert(rng.randrange(len(words) + 1), rng.choice(lines[other].split(" ")))
            lines[line] = " ".join(words)
            text = "\n".join(lines)
        else:
            text = text[: at + 1]
    return text
