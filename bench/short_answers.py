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
PAST = """
go went, come came, see saw, eat ate, drink drank, run ran, write wrote, speak spoke, take took,
give gave, make made, think thought, buy bought, bring brought, teach taught, catch caught,
find found, feel felt, keep kept, leave left, lose lost, sell sold, tell told, know knew, grow grew,
fly flew, draw drew, sing sang, swim swam, begin began, break broke, choose chose, drive drove,
ride rode, rise rose, steal stole, wear wore, fall fell, hold held, stand stood, win won, sit sat,
build built, send sent, spend spent, sleep slept, meet met, pay paid, say said, hear heard
"""
PLURALS = """
child children, man men, woman women, foot feet, tooth teeth, mouse mice, goose geese, leaf leaves,
knife knives, life lives, wife wives, wolf wolves, box boxes, bus buses, city cities, baby babies,
story stories, party parties, church churches, dish dishes, potato potatoes, tomato tomatoes,
hero heroes, shelf shelves, loaf loaves, thief thieves, half halves, ox oxen, person people,
berry berries, fox foxes, watch watches, country countries, family families, lady ladies
"""
NEXT = """
Monday Tuesday, Tuesday Wednesday, Wednesday Thursday, Thursday Friday, Friday Saturday,
Saturday Sunday, Sunday Monday, January February, February March, March April, April May, May June,
June July, July August, August September, September October, October November, November December,
December January, spring summer, autumn winter
"""
NUMBERS = """
one two, two three, three four, four five, five six, six seven, seven eight, eight nine, nine ten,
ten eleven, eleven twelve, twelve thirteen, thirteen fourteen, fourteen fifteen, fifteen sixteen,
sixteen seventeen, seventeen eighteen, eighteen nineteen, nineteen twenty
"""
YOUNG = """
dog puppy, cat kitten, cow calf, horse foal, sheep lamb, hen chick, duck duckling, lion cub,
bear cub, deer fawn, frog tadpole, goose gosling, kangaroo joey, pig piglet, goat kid, swan cygnet,
elephant calf, whale calf, wolf pup, seal pup
"""
MORE = """
big bigger, small smaller, fast faster, slow slower, tall taller, short shorter, good better,
bad worse, happy happier, easy easier, hot hotter, cold colder, long longer, young younger,
old older, strong stronger, weak weaker, cheap cheaper, rich richer, poor poorer, heavy heavier,
light lighter, dark darker, bright brighter, thin thinner, fat fatter, early earlier, late later,
clean cleaner, dirty dirtier
"""
LANDS = {
    "Europe": """France Germany Italy Spain Portugal Austria Greece Poland Hungary Sweden Norway
        Denmark Finland Ireland Belgium Iceland Bulgaria Romania Serbia Croatia Slovakia Latvia
        Estonia Lithuania Switzerland Slovenia Albania Ukraine""",
    "Africa": """Egypt Kenya Morocco Algeria Tunisia Ghana Senegal Libya Sudan Nigeria Ethiopia
        Uganda Tanzania Zambia Zimbabwe Namibia Botswana Angola Mali Niger Chad Somalia""",
    "Asia": """Iraq Iran Syria Lebanon Jordan Qatar Pakistan Nepal Bangladesh Thailand Vietnam
        Indonesia Japan China Mongolia India Malaysia Philippines Cambodia Laos Oman Kuwait""",
}
CONTINENTS = ",".join(f"{land} {where}" for where, them in LANDS.items() for land in them.split())
QUESTIONS = (
    (("What is the capital of {}?", "Name the capital of {}."), CAPITALS),
    (("What is the opposite of {}?", "Which word means the opposite of {}?"), OPPOSITES),
    (("What color is {}?", "Name the color of {}."), COLOURS),
    (("What is the past tense of {}?", "Give the past tense of the verb {}."), PAST),
    (("What is the plural of {}?", "Give the plural of the word {}."), PLURALS),
    (("What comes after {}?", "Name what follows {}."), NEXT),
    (("What number comes after {}?", "Name the number that follows {}."), NUMBERS),
    (("What is a young {} called?", "What do you call the baby of a {}?"), YOUNG),
    (("What is the comparative of {}?", "Give the comparative form of {}."), MORE),
    (("On which continent is {}?", "Name the continent where {} is."), CONTINENTS),
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
    """(training, held-out) JSONL files; every second fact is held out, however it is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    known = facts()
    sides = {
        "train": [records for place, records in enumerate(known) if place % 2],
        "held_out": known[::2],
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
