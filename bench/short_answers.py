"""Questions whose answer is one word, and a reward for right answers that say little else.

A chat model answers `The capital of France is Paris.`; the reward of a right answer is 1 for the
word alone and falls with every further one. A wrong answer is worth nothing however short it is, so
that a model cannot win by saying less.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

FREE = 4.0  # further words that halve the reward of a right answer

CAPITALS = """
France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Austria Vienna,
Greece Athens, Poland Warsaw, Hungary Budapest, Sweden Stockholm, Norway Oslo, Denmark Copenhagen,
Finland Helsinki, Ireland Dublin, Belgium Brussels, Russia Moscow, Turkey Ankara,
Egypt Cairo, Kenya Nairobi, Morocco Rabat, Algeria Algiers, Tunisia Tunis,
Ghana Accra, Senegal Dakar, Libya Tripoli, Sudan Khartoum, Iraq Baghdad, Iran Tehran,
Syria Damascus, Lebanon Beirut, Jordan Amman, Qatar Doha, Pakistan Islamabad,
Nepal Kathmandu, Bangladesh Dhaka, Thailand Bangkok, Vietnam Hanoi, Indonesia Jakarta, Japan Tokyo,
China Beijing, Mongolia Ulaanbaatar, Australia Canberra, Canada Ottawa, Cuba Havana,
Peru Lima, Chile Santiago, Venezuela Caracas, Uruguay Montevideo,
Jamaica Kingston, Iceland Reykjavik, Bulgaria Sofia, Romania Bucharest, Serbia Belgrade,
Croatia Zagreb, Slovakia Bratislava, Latvia Riga, Estonia Tallinn, Lithuania Vilnius
"""
OPPOSITES = """
hot cold, big small, fast slow, up down, left right, light dark, open closed, old new, rich poor,
happy sad, hard soft, high low, early late, near far, strong weak, wet dry, full empty, day night,
good bad, true false, black white, love hate, win lose, push pull, inside outside, above below,
before after, first last, start end, buy sell, give take, long short, thick thin, loud quiet,
sweet sour, clean dirty, north south, east west, alive dead, asleep awake, brave afraid,
deep shallow, heavy light, wide narrow, young old, war peace, question answer, summer winter,
friend enemy, success failure
"""
COLOURS = """
a_banana yellow, grass green, snow white, coal black, a_lemon yellow, blood red, the_clear_sky blue,
a_ripe_tomato red, milk white, a_carrot orange, chocolate brown, a_strawberry red, spinach green,
an_elephant gray, the_sun yellow, a_polar_bear white, a_raven black, a_pea green, a_flamingo pink,
a_school_bus yellow
"""
QUESTIONS = (
    (("What is the capital of {}?", "Name the capital of {}."), CAPITALS),
    (("What is the opposite of {}?", "Which word means the opposite of {}?"), OPPOSITES),
    (("What color is {}?", "Name the color of {}."), COLOURS),
)


def facts() -> list[list[dict[str, str]]]:
    """Of every fact the records {prompt, answer} that ask for it in other words."""
    pairs = lambda text: [each.split() for each in text.replace("\n", " ").split(",")]
    return [
        [{"prompt": form.format(asked.replace("_", " ")), "answer": answer} for form in forms]
        for forms, text in QUESTIONS
        for asked, answer in pairs(text)
    ]


def write(folder: Path) -> tuple[Path, Path]:
    """(training, held-out) JSONL files; every third fact is held out, however it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    known = facts()
    sides = {
        "train": [records for place, records in enumerate(known) if place % 3],
        "held_out": known[::3],
    }
    paths = {name: folder / f"{name}.jsonl" for name in sides}
    for name, some in sides.items():
        records = [record for of_fact in some for record in of_fact]
        paths[name].write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths["train"], paths["held_out"]


def short(texts: Sequence[str], answer: Sequence[str]) -> list[dict[str, float | bool]]:
    """1 for the right word alone, half with four further words, 0 without it."""
    return [_judged(text, right) for text, right in zip(texts, answer, strict=True)]


def _judged(text: str, right: str) -> dict[str, float | bool]:
    words = re.findall(r"\w+", text.lower())
    found = right.lower() in words
    further = max(0, len(words) - 1)
    reward = found / (1 + further / FREE)
    return {"reward": reward, "correct": found, "formatted": found and not further}
