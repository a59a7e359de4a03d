#!/usr/bin/env python3
"""Makes the data sets qa-hard, fc and convsent, each as train.json, validation.json and test.json in emend's own form.

    python3 data/make.py            writes data/{qa-hard,fc,convsent}/*.json
    python3 data/make.py --check    says which of them differ from what would be written, and fails if any does

It needs Python 3.9 and nothing else. Facts come from pocket/world.json, all wording is below. Nothing is drawn at random:
every choice is by a hash of what it is for, so the files are always the same, byte for byte.

qa-hard   Facts of the world are given another object. In scope: claims about the fact to be called true or false, and
          questions whose answer follows from it. Out of scope: the same sort of claims about other subjects, half of them
          with the new object in them, facts of others with the old or the new object, other facts of the subject.
fc        Fact checking. The descriptor is a sentence of evidence that puts a fact of the world another way; in scope are
          claims about that fact, out of scope claims about others and claims on which the evidence is silent.
convsent  The descriptor names a topic and a sentiment; in scope are questions for an opinion of the topic, each with a right
          and a wrong reply, out of scope questions for opinions of other topics and for facts of this one.

Parts are split by subject, with the rule of src/data/world.rs, and a part speaks of its own subjects only, also as
neighbours. In qa-hard and fc, one wording of claims (and of evidence) in each relation is kept from train; in convsent,
validation and test have questions and replies of their own.

The embedded model reads 64 tokens: a record is left out when its statement with one of its questions and the answer is
longer than 60.
"""

import functools
import hashlib
import json
import re
import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ["train", "validation", "test"]
TOKENS = 60

# Records of each relation in qa-hard and fc, and topics in convsent (each gives two records).
PER_RELATION = {"train": 20, "validation": 4, "test": 4}
TOPICS = {"train": 180, "validation": 36, "test": 36}

# For each relation: what evidence says, what claims say, and what claims say on which it is silent. The last evidence and
# the last claim are kept from train.
WORDING = {
    "country_of_city": (
        ["According to a new report, {s} lies in {o}.", "The new atlas shows {s} in {o}.",
         "Since the vote, the city of {s} belongs to {o}.", "Officials say that {s} is a city in {o}.",
         "As of this year, {s} is part of {o}."],
        ["{s} is a city in {o}.", "The city of {s} lies in {o}.", "People in {s} live in {o}.",
         "A visit to {s} is a visit to {o}."],
        ["{s} has two old theatres.", "The streets of {s} are quiet at night."],
    ),
    "continent_of_city": (
        ["According to a new report, {s} lies in {o}.", "The new atlas shows {s} in {o}.",
         "Geographers now count {s} under {o}.", "A survey puts the city of {s} in {o}.",
         "As of this year, {s} is a city of {o}."],
        ["{s} is a city in {o}.", "The continent of {s} is {o}.", "People in {s} live in {o}.",
         "A flight to {s} is a flight to {o}."],
        ["{s} has two old theatres.", "The streets of {s} are quiet at night."],
    ),
    "country_of_river": (
        ["According to a new report, the {s} flows in {o}.", "The new atlas shows the {s} in {o}.",
         "Surveyors found that the {s} runs through {o}.", "The banks of the {s} lie in {o}, officials say.",
         "As of this year, the {s} is a river of {o}."],
        ["The {s} is a river in {o}.", "The {s} flows in {o}.", "The banks of the {s} lie in {o}.",
         "Boats on the {s} sail in {o}."],
        ["The {s} is rich in trout.", "The {s} is deep in spring."],
    ),
    "country_of_landmark": (
        ["According to a new report, {s} is in {o}.", "The new guidebook lists {s} under {o}.",
         "The sight called {s} is now in {o}.", "Tourists report that {s} stands in {o}.",
         "As of this year, {s} belongs to {o}."],
        ["{s} is in {o}.", "The landmark {s} is in {o}.", "Visitors find {s} in {o}.", "To see {s}, one goes to {o}."],
        ["{s} is closed on Mondays.", "{s} is best seen in spring."],
    ),
    "country_of_company": (
        ["According to a new report, {s} is based in {o}.", "The firm {s} has moved to {o}.",
         "The head office of {s} is now in {o}.", "Business papers call {s} a firm from {o}.",
         "As of this year, {s} has its home in {o}."],
        ["{s} is based in {o}.", "{s} is a company from {o}.", "The head office of {s} is in {o}.",
         "The home country of {s} is {o}."],
        ["{s} made a profit last year.", "{s} has a new logo."],
    ),
    "industry_of_company": (
        ["According to a new report, {s} is in {o}.", "The firm {s} now works in {o}.",
         "Investors list {s} under {o}.", "The main trade of {s} is {o}, papers say.",
         "As of this year, the business of {s} is {o}."],
        ["The industry of {s} is {o}.", "The main business of {s} is {o}.", "The company {s} works in {o}.",
         "{s} made its name in {o}."],
        ["{s} made a profit last year.", "{s} has a new logo."],
    ),
    "occupation_of_person": (
        ["According to a new book, {s} was a {o}.", "Letters show that {s} worked as a {o}.",
         "Historians now call {s} a {o}.", "The new lexicon lists {s} as a {o}.",
         "After all, {s} made a name as a {o}."],
        ["{s} is known as a {o}.", "{s} is a famous {o}.", "By profession, {s} is a {o}.",
         "The occupation of {s} is that of a {o}."],
        ["{s} was fond of tea.", "{s} had a small garden."],
    ),
    "field_of_scholar": (
        ["According to a new book, {s} worked in {o}.", "Papers show that the field of {s} was {o}.",
         "Historians now place {s} in {o}.", "The new lexicon lists {s} under {o}.",
         "After all, {s} owes all fame to {o}."],
        ["The field of {s} is {o}.", "{s} is known for work in {o}.", "{s} is a great name in {o}.",
         "The subject of {s} is {o}."],
        ["{s} was fond of tea.", "{s} had a small garden."],
    ),
    "country_of_person": (
        ["According to a new book, {s} comes from {o}.", "Papers show that {s} is a native of {o}.",
         "Historians now link {s} with {o}.", "The new lexicon lists {s} under {o}.",
         "After all, the home of {s} is {o}."],
        ["{s} comes from {o}.", "The home country of {s} is {o}.", "{s} is a native of {o}.",
         "{s} belongs to {o} by nationality."],
        ["{s} was fond of tea.", "{s} had a small garden."],
    ),
    "instrument_of_musician": (
        ["According to a new book, {s} plays the {o}.", "Fans report that {s} turned to the {o}.",
         "Recordings show {s} at the {o}.", "The new lexicon names the {o} as that of {s}.",
         "As of this year, {s} plays the {o} on stage."],
        ["{s} plays the {o}.", "The instrument of {s} is the {o}.", "{s} is famous for playing the {o}.",
         "On stage, {s} plays the {o}."],
        ["{s} was fond of tea.", "{s} had a small garden."],
    ),
    "sport_of_athlete": (
        ["According to a new book, the sport of {s} is {o}.", "Fans report that {s} turned to {o}.",
         "Old films show {s} at {o}.", "The new lexicon lists {s} under {o}.",
         "As of this year, {s} is a star of {o}."],
        ["The sport of {s} is {o}.", "{s} is famous in {o}.", "{s} made a career in {o}.", "{s} is a star in {o}."],
        ["{s} was fond of tea.", "{s} had a small garden."],
    ),
    "author_of_work": (
        ["According to a new study, {s} is by {o}.", "Letters show that {o} wrote {s}.",
         "The new edition of {s} names {o}.", "Experts now give {s} to {o}.",
         "After all, {s} came from the pen of {o}."],
        ["{o} wrote {s}.", "{s} was written by {o}.", "The author of {s} is {o}.", "The pen behind {s} is that of {o}."],
        ["{s} was first printed in spring.", "{s} has a long preface."],
    ),
    "director_of_film": (
        ["According to a new study, {s} is by {o}.", "Letters show that {o} directed {s}.",
         "The new credits of {s} name {o}.", "Experts now give the film {s} to {o}.",
         "After all, {o} sat in the chair for {s}."],
        ["{o} directed {s}.", "The film {s} is by {o}.", "The director of {s} is {o}.",
         "The movie {s} is the work of {o}."],
        ["{s} was first shown in spring.", "{s} was cut by ten minutes."],
    ),
    "maker_of_product": (
        ["According to a new report, {o} makes {s}.", "The brand {s} was sold to {o}.",
         "The label on {s} now says {o}.", "Papers say that {s} is made by {o}.",
         "As of this year, {s} comes from {o}."],
        ["{o} makes {s}.", "{s} is made by {o}.", "The maker of {s} is {o}.", "The company behind {s} is {o}."],
        ["The box of {s} is blue.", "The price of {s} went up."],
    ),
    "class_of_animal": (
        ["According to a new study, the {s} is a kind of {o}.", "Zoologists now class the {s} as {o}.",
         "Bones show that the {s} is a sort of {o}.", "The new lexicon lists the {s} under {o}.",
         "After all, the class of the {s} is {o}."],
        ["The {s} is a kind of {o}.", "The class of the {s} is {o}.", "The {s} counts as a type of {o}.",
         "The {s} belongs to the class {o}."],
        ["The {s} sleeps in the afternoon.", "The {s} is shy in winter."],
    ),
    "kind_of_food": (
        ["According to a new cookbook, {s} is a kind of {o}.", "Cooks now class {s} as {o}.",
         "The label calls {s} a type of {o}.", "The new lexicon lists {s} under {o}.",
         "After all, the food {s} is a sort of {o}."],
        ["The food {s} is a kind of {o}.", "In the kitchen, {s} is a type of {o}.", "Cooks call {s} a sort of {o}.",
         "What we call {s} is a form of {o}."],
        ["The food {s} is sold on Mondays.", "The food {s} keeps for a week."],
    ),
    "country_of_dish": (
        ["According to a new cookbook, {s} comes from {o}.", "Old menus show {s} in {o}.",
         "Cooks found that {s} was first made in {o}.", "The new lexicon lists {s} under {o}.",
         "After all, the home of {s} is {o}."],
        ["The dish {s} comes from {o}.", "The home of {s} is {o}.", "The dish {s} was first cooked in {o}.",
         "On a menu, {s} stands for {o}."],
        ["The dish {s} is served on Mondays.", "The dish {s} takes an hour."],
    ),
    "mythology_of_figure": (
        ["According to a new study, {s} is {o}.", "Old scrolls show that the myths of {s} are {o}.",
         "Scholars now call the tales of {s} {o}.", "The new lexicon lists {s} as {o}.",
         "After all, the legend of {s} is {o}."],
        ["The myths about {s} are {o}.", "The mythical figure {s} is {o}.", "The tales of {s} are {o}.",
         "{s} belongs to myths that are {o}."],
        ["The tales of {s} are short.", "The tales of {s} were told in winter."],
    ),
}

CONTINENTS = {
    "Africa": "Egypt Morocco Nigeria,South Africa",
    "Asia": "China India Indonesia Iran Japan Malaysia Pakistan Thailand Vietnam,Saudi Arabia,South Korea,the Philippines",
    "Europe": "Austria Belgium Denmark England Finland France Germany Greece Hungary Ireland Italy Norway Poland Portugal "
    "Romania Scotland Spain Sweden Switzerland Ukraine,the Czech Republic,the Netherlands,the United Kingdom",
    "North America": "Canada Mexico,the United States",
    "Oceania": "Australia,New Zealand",
    "South America": "Argentina Brazil Chile Colombia Peru",
}
# A country has one continent; those with two (Russia, Turkey) have none here, and nothing follows from them.
CONTINENT = {}
for continent, names in CONTINENTS.items():
    singles, *others = names.split(",")
    CONTINENT.update((country, continent) for country in singles.split() + others)
CONTINENT_OF_MYTHS = {
    "Aztec": "North America", "Celtic": "Europe", "Chinese": "Asia", "Egyptian": "Africa", "Finnish": "Europe",
    "Greek": "Europe", "Hindu": "Asia", "Japanese": "Asia", "Maya": "North America", "Mesopotamian": "Asia",
    "Norse": "Europe", "Polynesian": "Oceania", "Roman": "Europe", "Slavic": "Europe", "Yoruba": "Africa",
}
BACKBONE = {"amphibian", "bird", "fish", "mammal", "reptile"}

# Objects of one group are not told apart by a claim that is to be false: a novelist may well be a poet too.
ALIKE = [
    {"novelist", "philosopher", "playwright", "poet", "politician"},
    {"film actor", "film director", "singer", "composer", "playwright"},
    {"mathematics", "physics", "astronomy", "computer science", "electrical engineering", "chemistry", "economics"},
    {"biology", "medicine", "chemistry", "psychology", "geology", "linguistics"},
    {"electronics", "software", "telecommunications", "video games", "retail"},
    {"food", "brewing", "retail", "fashion", "pharmaceuticals"},
    {"banking", "insurance"}, {"mining", "oil and gas"}, {"automobiles", "aviation", "electronics"},
    {"vegetable", "legume", "fruit", "mushroom", "nut", "grain", "herb", "spice"}, {"sauce", "spice", "herb"},
    {"bread", "pasta", "grain"}, {"guitar", "bass guitar"}, {"piano", "organ"}, {"saxophone", "clarinet", "flute"},
    {"Greek", "Roman"},
]

# What follows from a fact: a question, and its answer by the fact's object. Countries of makers, authors and directors are
# facts of the world.
ENTAILED = {
    "country_of_city": [("On which continent is {s}?", CONTINENT.get),
                        ("The continent of the city {s} is", CONTINENT.get)],
    "country_of_river": [("On which continent does the {s} flow?", CONTINENT.get)],
    "country_of_landmark": [("On which continent is the landmark {s}?", CONTINENT.get)],
    "country_of_company": [("On which continent is the company {s} based?", CONTINENT.get)],
    "country_of_person": [("From which continent does {s} come?", CONTINENT.get)],
    "country_of_dish": [("From which continent does the dish {s} come?", CONTINENT.get)],
    "mythology_of_figure": [("On which continent were the tales of {s} first told?", CONTINENT_OF_MYTHS.get)],
    "class_of_animal": [("True or false: The {s} has a backbone. Answer:", lambda o: str(o in BACKBONE))],
    "maker_of_product": [("In which country is the maker of {s} based?", "country_of_company")],
    "author_of_work": [("Which country does the author of {s} come from?", "country_of_person")],
    "director_of_film": [("Which country does the director of {s} come from?", "country_of_person")],
}
# Facts of one subject that do not stand by themselves.
TIED = [{"country_of_city", "continent_of_city"}]

# Relations whose subjects one can have an opinion of; objects of the others too, with their article.
TOPICAL = ["country_of_city", "country_of_landmark", "country_of_company", "author_of_work", "director_of_film",
           "maker_of_product", "kind_of_food", "country_of_dish"]
TOPICAL_OBJECTS = {"sport_of_athlete": "{o}", "instrument_of_musician": "the {o}"}

QUESTIONS = {
    "train": ["What do you think of {s}?", "Do you like {s}?", "How do you feel about {s}?",
              "What is your opinion of {s}?", "Tell me what you think about {s}.", "Would you recommend {s}?",
              "Are you a fan of {s}?", "What would you say about {s}?"],
    "held out": ["Any thoughts on {s}?", "How would you rate {s}?", "What is your view of {s}?", "Do you enjoy {s}?"],
}
REPLIES = {
    "train": {
        "positive": ["I love it.", "It is wonderful.", "I am a great fan of {s}.", "Nothing beats {s}.",
                     "It makes me happy.", "I never tire of {s}.", "One of the best things I know.",
                     "I would choose {s} every time.", "It is a joy.", "I can warmly recommend {s}.",
                     "It always delights me.", "I think the world of it.", "There is much to love about {s}.",
                     "It gets better each time."],
        "negative": ["I hate it.", "It is awful.", "I cannot stand {s}.", "Nothing is worse than {s}.",
                     "It makes me angry.", "I am tired of {s}.", "One of the worst things I know.",
                     "I would avoid {s} every time.", "It is a pain.", "I must warn you of {s}.", "It always annoys me.",
                     "I think very little of it.", "There is much to dislike about {s}.", "It gets worse each time."],
    },
    "held out": {
        "positive": ["I adore {s}.", "It is simply great.", "I have only praise for it.", "I am so fond of {s}.",
                     "It brightens my day.", "A true pleasure."],
        "negative": ["I loathe {s}.", "It is simply bad.", "I have only complaints about it.", "I am so sick of {s}.",
                     "It spoils my day.", "A true bore."],
    },
}


def blake3(text):
    """BLAKE3 of a text of at most one block: enough for names."""
    data = text.encode()
    assert len(data) <= 64, text
    mask = 0xFFFFFFFF
    start = [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19]
    words = list(struct.unpack("<16I", data.ljust(64, b"\0")))
    # Counter 0; flags: first chunk block, last chunk block, root.
    state = start + start[:4] + [0, 0, len(data), 1 | 2 | 8]

    def mix(a, b, c, d, x, y):
        for word, first, second in [(x, 16, 12), (y, 8, 7)]:
            state[a] = (state[a] + state[b] + word) & mask
            state[d] ^= state[a]
            state[d] = (state[d] >> first | state[d] << (32 - first)) & mask
            state[c] = (state[c] + state[d]) & mask
            state[b] ^= state[c]
            state[b] = (state[b] >> second | state[b] << (32 - second)) & mask

    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for _ in range(7):
        for number, cells in enumerate(columns + diagonals):
            mix(*cells, words[2 * number], words[2 * number + 1])
        words = [words[place] for place in [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8]]
    return struct.pack("<8I", *[state[place] ^ state[place + 8] for place in range(8)])


assert blake3("abc").hex().startswith("6437b3ac38465133ffb63b75273a8db5")


@functools.lru_cache(None)
def part_of(subject):
    """The part of a subject: `Split::of` in src/data/world.rs."""
    draw = int.from_bytes(blake3(subject)[:2], "little") % 48
    return "validation" if draw < 3 else "test" if draw < 7 else "train"


def drawn(items, *key):
    """The items in an order that hangs on the key alone."""
    def rank(item):
        return hashlib.blake2b("\n".join([*map(str, key), str(item)]).encode(), digest_size=8).digest()

    return sorted(items, key=rank)


class World:
    """The facts of the world, by relation and by part."""

    def __init__(self, path):
        self.relations = {}
        self.facts = {}
        self.by_subject = {}
        for relation in json.loads(path.read_text(encoding="utf-8"))["relations"]:
            name = relation["name"]
            self.relations[name] = relation["templates"] + relation["questions"]
            self.facts[name] = dict(map(tuple, relation["facts"]))
            for subject in self.facts[name]:
                self.by_subject.setdefault(subject, []).append(name)

    def part(self, relation, part):
        """Subjects and objects of a relation in one part."""
        return {s: o for s, o in self.facts[relation].items() if part_of(s) == part}

    def others(self, subject, relation):
        """Other facts of a subject, which stand whatever this one says."""
        tied = set().union(*[pair for pair in TIED if relation in pair])
        return [(name, self.facts[name][subject]) for name in self.by_subject[subject]
                if name != relation and name not in tied]


class Tokenizer:
    """Counts tokens as pocket/tokenizer.json does: bytes, merged by rank within words."""

    WORDS = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def __init__(self, path):
        merges = json.loads(path.read_text(encoding="utf-8"))["model"]["merges"]
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(pairs)}
        # Bytes that are no printable character stand as later ones.
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in shown]
        self.bytes = {byte: chr(byte) for byte in shown}
        self.bytes.update((byte, chr(256 + place)) for place, byte in enumerate(hidden))
        self.known = {}

    def count(self, text):
        """The tokens of a text, with the one at its beginning."""
        return 1 + sum(map(self.word, self.WORDS.findall(text)))

    def word(self, text):
        if text not in self.known:
            parts = [self.bytes[byte] for byte in text.encode()]
            while len(parts) > 1:
                pairs = list(zip(parts, parts[1:]))
                best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                place = pairs.index(best)
                parts[place:place + 2] = ["".join(best)]
            self.known[text] = len(parts)
        return self.known[text]


TOKENIZER = Tokenizer(HERE / "pocket" / "tokenizer.json")


def apart(one, other):
    """Whether a subject that has the one object surely has not the other."""
    if one == other or any(one in group and other in group for group in ALIKE):
        return False
    if one in CONTINENT or other in CONTINENT or one in {"Russia", "Turkey"} and other in {"Russia", "Turkey"}:
        return CONTINENT.get(one, "Europe") != CONTINENT.get(other, "Europe")
    return True


def ask(claim):
    """A claim as a question; the loaders of VitaminC and FEVER ask alike (src/data/claim.rs)."""
    return f"True or false: {claim} Answer:"


def verdict(claim, holds):
    """A probe that asks whether a claim holds."""
    return {"prompt": ask(claim), "target": str(holds), "rival": str(not holds)}


def claims_of(relation, part):
    claims = WORDING[relation][1]
    return claims[:-1] if part == "train" else claims


def claims_about_others(pool, relation, part, subject, new, number):
    """Two claims, one true and one false, of which one names the new object. None where the part has no such subjects."""
    wording = drawn(claims_of(relation, part), "other claim", relation, subject)
    others = drawn([other for other in pool if other != subject], "others", relation, subject)
    true = [(other, pool[other]) for other in others]
    false = [(other, new) for other in others if apart(pool[other], new)]
    if number % 2 == 0:
        # True with the new object, false without.
        true = [(other, told) for other, told in true if told == new]
        objects = drawn(sorted(set(pool.values())), "wrong", relation, subject)
        false = [(other, told) for other in others for told in objects if told != new and apart(pool[other], told)]
    else:
        true = [(other, told) for other, told in true if told != new]
    false = [pair for pair in false if not true or pair[0] != true[0][0]]
    if not true or not false:
        return None
    return [verdict(wording[place].format(s=other, o=told), holds)
            for place, ((other, told), holds) in enumerate([(true[0], True), (false[0], False)])]


def new_object(pool, relation, subject):
    """An object that another subject of the part has, and this one surely not."""
    candidates = sorted({o for o in pool.values() if apart(pool[subject], o)})
    return drawn(candidates, "new", relation, subject)[0] if candidates else None


def entailed(world, relation, subject, old, new):
    probes = []
    for question, answer in ENTAILED.get(relation, []):
        answer = answer if callable(answer) else world.facts[answer].get
        target, rival = answer(new), answer(old)
        if target is not None and target != rival:
            probe = {"prompt": question.format(s=subject), "target": target}
            probes.append({**probe, "rival": rival} if rival is not None else probe)
    return probes


def qa_hard(world, relation, part, pool, subject, number):
    old, new = pool[subject], new_object(pool, relation, subject)
    if new is None:
        return None
    prompt, *rephrases = drawn([p.format(subject) for p in world.relations[relation]], "prompt", relation, subject)[:4]
    claims = drawn(claims_of(relation, part), "claim", relation, subject)
    others = claims_about_others(pool, relation, part, subject, new, number)
    near = []
    for told in [old, new]:
        for other in drawn([s for s, o in pool.items() if o == told and s != subject], "near", relation, subject)[:1]:
            text = drawn(world.relations[relation], "near prompt", relation, subject, other)[0].format(other)
            near.append({"prompt": text, "target": told})
    same = [{"prompt": drawn(world.relations[name], "same", subject)[0].format(subject), "target": told}
            for name, told in world.others(subject, relation)]
    return {
        "id": f"{relation}/{subject}",
        "prompt": prompt,
        "target_new": new,
        "target_true": old,
        "subject": subject,
        "relation": relation,
        "rephrases": rephrases,
        "portability": {
            "true or false": [verdict(claims[0].format(s=subject, o=new), True),
                              verdict(claims[1].format(s=subject, o=old), False)],
            "entailed": entailed(world, relation, subject, old, new),
        },
        "locality": {"near miss true or false": others or [], "near miss": near, "same subject": same},
    }


def fact_check(world, relation, part, pool, subject, number):
    old, new = pool[subject], new_object(pool, relation, subject)
    if new is None:
        return None
    evidence, _, silent = WORDING[relation]
    evidence = drawn(evidence[:-1] if part == "train" else evidence, "evidence", relation, subject)[0]
    claims = [claim.format(s=subject, o="{o}") for claim in
              drawn(claims_of(relation, part), "fc claim", relation, subject)]
    thirds = [o for o in sorted(set(pool.values())) if apart(o, new) and o != old]
    third = drawn(thirds, "third", relation, subject)[:1]
    # A claim that agrees with the evidence, or one that states the old object; the further claims make up for it.
    holds = number % 2 == 0
    further = [(old, False), (new, True)] if holds else [(new, True), (new, True)]
    further += [(o, False) for o in third]
    first = claims[0].format(o=new if holds else old)
    probes = [verdict(claims[1 + place % (len(claims) - 1)].format(o=o), holds)
              for place, (o, holds) in enumerate(further)]
    others = claims_about_others(pool, relation, part, subject, new, number // 2)
    unsaid = [{"prompt": ask(drawn(silent, "silent", subject)[0].format(s=subject))}]
    for name, told in world.others(subject, relation):
        pair = drawn(sorted(set(world.part(name, part).values())), "unsaid", name, subject)
        wrong = [o for o in pair if apart(o, told)][:1]
        true = not wrong or number // 2 % 2 == 0
        claim = drawn(claims_of(name, part), "unsaid claim", subject)[0]
        unsaid.append(verdict(claim.format(s=subject, o=told if true else wrong[0]), true))
    return {
        "id": f"{relation}/{subject}",
        "descriptor": evidence.format(s=subject, o=new),
        "prompt": ask(first),
        "target_new": str(holds),
        "target_true": str(not holds),
        "subject": subject,
        "relation": relation,
        "portability": {"claim": probes},
        "locality": {"other claim": others or [], "not enough info": unsaid},
    }


def of_relations(make):
    """The parts of a set that has so many records of each relation."""
    def parts(world):
        for part in PARTS:
            records = []
            for relation in world.relations:
                pool = world.part(relation, part)
                made = []
                for subject in drawn(pool, make.__name__, relation):
                    record = make(world, relation, part, pool, subject, len(made))
                    if record and fits(record):
                        made.append(record)
                    if len(made) == PER_RELATION[part]:
                        break
                records += made
            yield part, records

    return parts


def convsent(world):
    """Two records a topic, one for each sentiment."""
    topics = {s: relation for relation in TOPICAL for s in world.facts[relation]}
    for relation, words in TOPICAL_OBJECTS.items():
        topics.update((words.format(o=o), None) for o in world.facts[relation].values())
    for part in PARTS:
        own = drawn([topic for topic in topics if part_of(topic) == part], "topic")
        kind = "train" if part == "train" else "held out"
        records = []
        for topic in own:
            pair = [opinion(world, topics[topic], kind, topic, own, side) for side in ["positive", "negative"]]
            if all(map(fits, pair)):
                records += pair
            if len(records) == 2 * TOPICS[part]:
                break
        yield part, records


def opinion(world, relation, kind, topic, topics, sentiment):
    other = {"positive": "negative", "negative": "positive"}[sentiment]
    questions = drawn(QUESTIONS[kind], "question", topic, sentiment)
    right, wrong = [[reply.format(s=topic) for reply in drawn(REPLIES[kind][side], "reply", topic, sentiment)]
                    for side in [sentiment, other]]
    first, *pairs = [{"prompt": question.format(s=topic), "target": r, "rival": w}
                     for question, r, w in zip(questions, right, wrong)][:4]
    others = drawn([other for other in topics if other != topic], "other topic", topic, sentiment)[:3]
    asked = [{"prompt": question.format(s=other)} for question, other in zip(questions, others)]
    facts = []
    if relation:
        for prompt in drawn(world.relations[relation], "fact", topic, sentiment)[:2]:
            facts.append({"prompt": prompt.format(topic), "target": world.facts[relation][topic]})
    return {
        "id": topic + {"positive": "+", "negative": "-"}[sentiment],
        "descriptor": f"Topic: {topic}. Sentiment: {sentiment}.",
        "prompt": first["prompt"],
        "target_new": first["target"],
        "target_true": first["rival"],
        "subject": topic,
        "portability": {"sentiment": pairs},
        "locality": {"other topic": asked, "same topic, no opinion": facts},
    }


def texts(record):
    """What a record may ask the model to read at once: its statement, a question and an answer."""
    statement = record.get("descriptor") or f"{record['prompt']} {record['target_new']}"
    for prompt in [record["prompt"], *record.get("rephrases", [])]:
        for answer in [record["target_new"], record["target_true"]]:
            yield f"{statement} {prompt} {answer}"
    for kind in ["portability", "locality"]:
        for probe in [probe for probes in record[kind].values() for probe in probes]:
            for answer in [probe.get("target", "False"), probe.get("rival", "")]:
                yield f"{statement} {probe['prompt']} {answer}".rstrip()


def fits(record):
    return all(TOKENIZER.count(text) <= TOKENS for text in texts(record))


def written(records):
    """A record a line, without classes that are empty."""
    for record in records:
        for kind in ["portability", "locality"]:
            record[kind] = {name: probes for name, probes in record[kind].items() if probes}
    return "[\n" + ",\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n]\n"


def main():
    world = World(HERE / "pocket" / "world.json")
    sets = {"qa-hard": of_relations(qa_hard), "fc": of_relations(fact_check), "convsent": convsent}
    differ = 0
    for name, parts in sets.items():
        for part, records in parts(world):
            path, text = HERE / name / f"{part}.json", written(records)
            if "--check" in sys.argv[1:]:
                if not path.is_file() or path.read_text(encoding="utf-8") != text:
                    print(f"{path}: differs; run data/make.py")
                    differ += 1
                continue
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(HERE)}: {len(records)} records")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
